"""MLflow's server, asked over HTTP without importing MLflow, which takes seconds and memory.

Credentials and certificates are MLflow's own variables (MLFLOW_TRACKING_USERNAME ...).
"""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import PipelineError
from pipeline.core.secrets import mask

if TYPE_CHECKING:
    import httpx

SECONDS = 20.0
_NOT_THERE = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")


def is_server(uri: str) -> bool:
    """Whether an address of a tracking store is that of a server."""
    return uri.startswith(("http://", "https://"))


class NotThere(Exception):
    """The server has no such thing."""


class Server:
    """An MLflow server."""

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")

    def new_client(self) -> "httpx.Client":
        """A client with the credentials of the environment."""
        import httpx

        given = os.environ.get
        user, password = given("MLFLOW_TRACKING_USERNAME"), given("MLFLOW_TRACKING_PASSWORD")
        token = given("MLFLOW_TRACKING_TOKEN")
        verify: Any = given("MLFLOW_TRACKING_SERVER_CERT_PATH") or True
        insecure = given("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1")
        if insecure or self.uri.startswith("http://"):  # reading certificates takes 50 ms
            verify = False
        return httpx.Client(
            timeout=SECONDS,
            verify=verify,
            auth=(user, password) if user and password else None,
            headers={"Authorization": f"Bearer {token}"} if token and not user else {},
        )

    def get(self, path: str, **query: str) -> dict[str, Any]:
        """What the REST API answers. path: as registered-models/get.

        Raises:
            NotThere: it has no such thing. PipelineError: it does not answer, or refuses.
        """
        return self._ask("GET", path, params=query)

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The same, for what changes something."""
        return self._ask("POST", path, json=dict(body))

    def _ask(self, method: str, path: str, **content: Any) -> dict[str, Any]:
        import httpx

        try:
            with self.new_client() as client:
                answer = client.request(method, f"{self.uri}/api/2.0/mlflow/{path}", **content)
            if answer.status_code in (400, 404):
                found = answer.json()
                if found.get("error_code") in _NOT_THERE:
                    raise NotThere(str(found.get("message", ""))[:200])
            answer.raise_for_status()
            found = answer.json()
        except httpx.HTTPStatusError as error:
            raise PipelineError(
                f"the registry at {mask(self.uri)} refused ({error.response.status_code}): check "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or the server's log"
            ) from error
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, AttributeError) as error:
            raise PipelineError(
                f"the registry at {mask(self.uri)} does not answer ({type(error).__name__}): "
                "check MLFLOW_TRACKING_URI and the server"
            ) from error
        return dict(found)
