"""The chat page at `/`: one response that loads nothing else, and a content security policy."""

import base64
import hashlib
import re
from pathlib import Path

from starlette.responses import HTMLResponse

FOLDER = Path(__file__).parent
SCRIPTS = ("markdown.js", "citations.js", "app.js")


def page(*, records: bool, feedback: bool = False) -> HTMLResponse:
    """The page, the same for every client.

    The policy allows its one script and one style sheet by their digests. Text that is injected
    into the document can neither run nor load anything.

    Args:
        records: whether the server records conversations; the page then asks for consent.
        feedback: whether it takes ratings, corrections and votes.
    """
    script = "".join((FOLDER / name).read_text() for name in SCRIPTS)
    parts = {
        "style": (FOLDER / "style.css").read_text(),
        "script": f'"use strict";\n{script}',
        "records": str(records).lower(),
        "feedback": str(feedback).lower(),
    }
    html = (FOLDER / "index.html").read_text()
    for name, text in parts.items():
        html = html.replace(f"{{{{{name}}}}}", text)
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
