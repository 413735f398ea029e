"""Browser pages of other origins, as a browser asks for them."""

from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

from pipeline.core.errors import ConfigError
from pipeline.serving.__main__ import read_settings
from pipeline.serving.keyring import Keyring
from pipeline.serving.middleware.request_log import InFlight
from pipeline.serving.middleware.stack import MiddlewareStack
from tests.unit.serving.asgi import ask

PAGE = "https://app.example.com"
PREFLIGHT = {
    "origin": PAGE,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type",
}


def site(*origins: str) -> FastAPI:
    app = FastAPI()
    app.state.in_flight = InFlight()

    @app.post("/v1/x")
    async def answer() -> dict[str, str]:
        return {}

    keyring = Keyring(None, {"SERVE_API_KEY": "k"})
    MiddlewareStack(keyring=keyring, cors_origins=origins).add_to(app, lambda status: None)
    return app


@pytest.mark.parametrize("origins", [(PAGE,), ("https://other.example", PAGE), ("*",)])
def test_a_preflight_needs_no_key(origins: tuple[str, ...]) -> None:
    response = ask(site(*origins), "OPTIONS", headers=PREFLIGHT)
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] in (PAGE, "*")
    assert "POST" in response.headers["access-control-allow-methods"]
    assert "authorization" in response.headers["access-control-allow-headers"]
    assert "access-control-allow-credentials" not in response.headers


@pytest.mark.parametrize("key", ["k", "wrong"])
def test_answers_and_refusals_can_be_read_by_the_page(key: str) -> None:
    headers = {"origin": PAGE, "authorization": f"Bearer {key}"}
    response = ask(site(PAGE), "POST", headers=headers)
    assert response.status_code == (200 if key == "k" else 401)
    assert response.headers["access-control-allow-origin"] == PAGE
    assert "x-request-id" in response.headers["access-control-expose-headers"]


@pytest.mark.parametrize(("origins", "origin"), [((PAGE,), "https://evil.example"), ((), PAGE)])
def test_other_origins_are_refused(origins: tuple[str, ...], origin: str) -> None:
    app = site(*origins)
    refused = ask(app, "OPTIONS", headers={**PREFLIGHT, "origin": origin})
    assert refused.status_code in (400, 401, 405)
    assert "access-control-allow-origin" not in refused.headers
    answer = ask(app, "POST", headers={"origin": origin, "authorization": "Bearer k"})
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("given", ["app.example.com", "https://a.example/", "ftp://a", ""])
def test_what_is_no_origin_is_refused(tmp_path: Path, given: Any) -> None:
    with pytest.raises(ConfigError, match="give an origin such as"):
        read_settings([f'serve.cors_origins=["{given}"]'], tmp_path)
