"""What the chat page promises, as far as it shows without a browser (tests/browser has one)."""

import base64
import hashlib
import re

import pytest

from pipeline.serving.keyring import Keyring
from pipeline.serving.middleware.auth import AuthMiddleware
from pipeline.serving.page import page
from tests.unit.serving.asgi import ask


@pytest.fixture(scope="module")
def html() -> str:
    return bytes(page(records=False).body).decode()


def policy() -> dict[str, str]:
    header = page(records=False).headers["content-security-policy"]
    return dict(part.split(" ", 1) for part in header.split("; "))


def test_it_needs_no_key_to_be_read() -> None:
    app = AuthMiddleware(page(records=False), Keyring(None, {"SERVE_API_KEY": "sk-right"}))
    response = ask(app, path="/")
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert ask(app, path="/v1/models").status_code == 401


@pytest.mark.parametrize("tag", ["script", "style"])
def test_its_policy_allows_its_own_script_and_style_alone(html: str, tag: str) -> None:
    (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
    assert policy()[f"{tag}-src"] == f"'sha256-{digest}'"
    assert policy()["default-src"] == "'none'"
    assert policy()["connect-src"] == "'self'"
    # The policy would forbid them, and nobody see why nothing happens.
    assert not re.search(r'<[^>]*\s(style|on\w+)="', html)


def test_it_is_one_file_that_loads_nothing(html: str) -> None:
    without_data = re.sub(r'"data:[^"]*"', '""', html)
    assert not re.search(r"https?://|//[\w-]+\.\w|@import|url\(|\ssrc=", without_data)


def test_what_a_model_writes_can_only_become_text(html: str) -> None:
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", html
    )


@pytest.mark.parametrize("records", [True, False])
def test_it_knows_whether_conversations_are_recorded(records: bool) -> None:
    html = bytes(page(records=records).body).decode()
    assert f'data-records="{str(records).lower()}"' in html
    assert "{{" not in html


def test_it_shows_citations_as_text(html: str) -> None:
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    assert "function showCitations(view, said)" in script
    assert "showCitations(view, answer.citations)" in script
