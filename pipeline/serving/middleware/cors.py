"""Browser pages of other origins (CORS): which may call the API, and what they may read."""

from collections.abc import Sequence

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

METHODS = ("GET", "POST", "DELETE")
PREFLIGHT_SECONDS = 600
# Headers that a page may read beside the few that every page may.
EXPOSED = (
    *("x-request-id", "retry-after", "idempotent-replayed", "x-model-version"),
    *(
        f"x-ratelimit-{what}-{of}"
        for what in ("limit", "remaining", "reset")
        for of in ("requests", "tokens")
    ),
)


def add_cors(app: FastAPI, origins: Sequence[str]) -> None:
    """Answer preflights, before keys are asked for, and name the origin in every response.

    Keys come in headers, never in cookies, so credentials of the browser are not allowed.
    """
    app.add_middleware(
        CORSMiddleware,
        allow_origins=list(origins),
        allow_methods=list(METHODS),
        allow_headers=["*"],
        expose_headers=list(EXPOSED),
        max_age=PREFLIGHT_SECONDS,
    )
