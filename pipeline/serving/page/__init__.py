"""The chat page at `/`: one file, nothing loaded from anywhere else, and a policy that says so."""

import base64
import hashlib
import re
from pathlib import Path

from starlette.responses import HTMLResponse

FILE = Path(__file__).with_name("index.html")


def page(*, records: bool) -> HTMLResponse:
    """The page, to be sent as it is to everyone.

    Its one script and one style sheet are allowed by their digests, so a text that finds its way
    into the document can neither run nor load anything.

    Args:
        records: whether the server keeps conversations, so that the page asks for consent.
    """
    html = FILE.read_text().replace("{{records}}", str(records).lower())
    policy = {
        "default-src": "'none'",
        "script-src": _digest(html, "script"),
        "style-src": _digest(html, "style"),
        "connect-src": "'self'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return HTMLResponse(
        html,
        headers={
            "Content-Security-Policy": "; ".join(f"{name} {v}" for name, v in policy.items()),
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-cache",
        },
    )


def _digest(html: str, tag: str) -> str:
    """The source expression that allows the document's one element of a kind."""
    (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
