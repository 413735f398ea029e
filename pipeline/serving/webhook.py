"""MLflow's registry webhooks (MLflow 3.3 and newer): a signed message that something changed.

    POST /webhooks/mlflow    X-MLflow-Signature, X-MLflow-Timestamp, X-MLflow-Delivery-Id

The message only wakes the follower, which asks the registry itself. So a replayed or invented one
changes nothing.
"""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Mapping

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from pipeline.serving.openai.errors import error_body

PATH = "/webhooks/mlflow"
SECRET = "SERVE_WEBHOOK_SECRET"  # environment variable
MOST_BYTES = 64 * 1024
FRESH_SECONDS = 300


class Webhook:
    """The endpoint.

    Args:
        secret: with which MLflow signs; empty: every message is refused.
        name: of the registered model. changed: called when something of it changed.
    """

    def __init__(self, secret: str, name: str, changed: Callable[[], None]) -> None:
        self._secret, self._name, self._changed = secret, name, changed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await self._answer(Request(scope, receive))
        await response(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        if request.method != "POST":
            return _refusal(405, "send POST")
        if not self._secret:
            return _refusal(403, f"this server takes no webhooks: set {SECRET} where it runs")
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > MOST_BYTES:
                return _refusal(413, f"the message has more than {MOST_BYTES} bytes")
        if not is_signed(request.headers, body, self._secret):
            return _refusal(
                401, f"the signature is wrong or too old: give the webhook the secret in {SECRET}"
            )
        try:
            data = json.loads(body)["data"]
            named = data["name"]
        except (ValueError, TypeError, KeyError, RecursionError):
            return _refusal(400, "the message is not one of MLflow's registry")
        if named == self._name:
            self._changed()
        return Response(status_code=204)


def is_signed(
    headers: Mapping[str, str], body: bytes, secret: str, now: float | None = None
) -> bool:
    """Whether MLflow signed a message with this secret, minutes ago at most.

    now: seconds since 1970.
    """
    identity = headers.get("x-mlflow-delivery-id", "")
    moment = headers.get("x-mlflow-timestamp", "")
    if not (moment.isascii() and moment.isdigit() and len(moment) < 16):
        return False
    if abs((now or time.time()) - int(moment)) > FRESH_SECONDS:
        return False
    content = f"{identity}.{moment}.".encode() + body
    wanted = base64.b64encode(hmac.new(secret.encode(), content, hashlib.sha256).digest())
    given = headers.get("x-mlflow-signature", "")
    return hmac.compare_digest(given.encode("latin-1", "replace"), b"v1," + wanted)


def _refusal(status: int, text: str) -> Response:
    return JSONResponse(error_body(text), status)
