"""The chat page at `/`: one file that loads nothing else, and a content security policy."""

import base64
import hashlib
import re
from pathlib import Path

from starlette.responses import HTMLResponse

FILE = Path(__file__).with_name("index.html")
CITATIONS = Path(__file__).with_name("citations.js")  # becomes a part of its script


def page(*, records: bool) -> HTMLResponse:
    """The page, the same for every client.

    The policy allows its one script and one style sheet by their digests. Text that is injected
    into the document can neither run nor load anything.

    Args:
        records: whether the server records conversations; the page then asks for consent.
    """
    html = FILE.read_text().replace("{{records}}", str(records).lower())
    html = html.replace("{{citations}}", CITATIONS.read_text())
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
    """The policy's source expression for the document's only element of this tag."""
    (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
