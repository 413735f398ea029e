"""Which registered version a server runs, and the interface of what tells it of another one."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

VERSION_HEADER = "X-Model-Version"


@dataclass(frozen=True)
class ServedVersion:
    """A registered version. name: of the registered model. engine: digest of what is served."""

    name: str
    number: int
    engine: str

    @property
    def fields(self) -> dict[str, Any]:
        """What the API says of it."""
        return {"version": str(self.number), "engine_digest": self.engine}


class VersionMiddleware:
    """Says in a header of each response which version answers. A response that names one already,
    as one that was kept for an idempotency key, keeps its own."""

    def __init__(self, app: ASGIApp, version: ServedVersion) -> None:
        self._app, self._number = app, str(version.number)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).setdefault(VERSION_HEADER, self._number)
            await send(message)

        await self._app(scope, receive, marked if scope["type"] == "http" else send)


@dataclass(frozen=True)
class Release:
    """A version whose files are here."""

    folder: Path
    version: ServedVersion


class Followed(Protocol):
    """An alias of the registry (pipeline/deployment/following.py). Each call may block."""

    name: str  # of the registered model
    alias: str

    def look(self) -> int | None:
        """The version that the alias names now; None if it names none.

        Raises:
            PipelineError: the registry does not answer.
        """

    def fetch(self, number: int) -> Release:
        """A version's engine, pulled if it is not here.

        Raises:
            PipelineError: it cannot be fetched, or cannot run here.
        """

    def tell(self, number: int | None, address: str) -> None:
        """Tell the registry which version runs here; None: none does. Never raises."""
