"""A server that follows an alias of the registry: it changes over to a new version as it runs.

The new version is loaded beside the old one and warmed up. Then new requests go to it, those in
progress are finished by the old one, and that is closed. At no time are there more than two. If
anything of the new version fails, or memory has no room for two, the old one serves on, and the log
says why.
"""

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, TypeVar

from fastapi import FastAPI
from starlette.routing import Router
from starlette.types import Receive, Scope, Send

from pipeline.core.errors import (
    ArtifactError,
    ConfigError,
    DataError,
    MissingRuntime,
    PipelineError,
    ResourceError,
)
from pipeline.serving.middleware.request_log import InFlight
from pipeline.serving.versions import Followed, Release, ServedVersion
from pipeline.serving.webhook import PATH, Webhook

log = logging.getLogger("pipeline.serving")

STEP_SECONDS = 0.05  # between looks at whether a version is ready, or idle
RETRY_SECONDS = 600.0  # until a version that could not be served is tried again
HEARTBEAT_SECONDS = 300.0  # between messages to the registry that this server runs
WARMING = "warming up"
T = TypeVar("T")


@dataclass
class Generation:
    """A version that is loaded. count: requests in progress."""

    app: FastAPI
    version: ServedVersion
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)
    count: int = 0

    async def start(self) -> None:
        """Run the application's lifespan, which warms the engine up."""
        await self.stack.enter_async_context(self.app.router.lifespan_context(self.app))

    async def close(self) -> None:
        await self.stack.aclose()


class Readiness:
    """The readiness of the version that serves now, as server.py uses it."""

    def __init__(self, follower: "Follower") -> None:
        self._follower = follower
        self.ended = False

    @property
    def announce(self) -> Callable[[], None]:
        announce: Callable[[], None] = self._follower.current.app.state.readiness.announce
        return announce

    @announce.setter
    def announce(self, announce: Callable[[], None]) -> None:
        self._follower.current.app.state.readiness.announce = announce

    def end(self) -> None:
        self.ended = True
        self._follower.current.app.state.readiness.end()


class Follower:
    """The ASGI application around those of the versions.

    Args:
        first: the version to begin with.
        load: opens a version's engine and makes its application; called in a thread.
        no_room: why memory has no room for a version beside the one that serves; None if it has.
        followed: the alias.
        seconds: between looks at it. drain: seconds that requests have to finish in an old version.
        secret: of MLflow's webhooks. address: of this server, for the registry.

    Attributes:
        current: the version that serves. waiting: the version that does not serve yet, and why.
    """

    def __init__(
        self,
        first: Generation,
        load: Callable[[Release], FastAPI],
        no_room: Callable[[Release], str | None],
        followed: Followed,
        in_flight: InFlight,
        *,
        seconds: float,
        drain: float,
        secret: str,
        address: str,
    ) -> None:
        self.current = first
        self.waiting: tuple[int, str] | None = None
        self._load, self._no_room, self._followed = load, no_room, followed
        self._seconds, self._drain, self._address = seconds, drain, address
        self._wake = asyncio.Event()
        self._webhook = Webhook(secret, followed.name, self._changed)
        self._router = Router(lifespan=self._lifespan)
        self._alive = [first]
        self._said = ""
        self._told = self._retry = 0.0
        self.state = SimpleNamespace(readiness=Readiness(self), in_flight=in_flight)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._router(scope, receive, send)
            return
        if scope.get("path") == PATH:
            await self._webhook(scope, receive, send)
            return
        generation = self.current
        generation.count += 1
        try:
            await generation.app(scope, receive, send)
        finally:
            generation.count -= 1

    @asynccontextmanager
    async def _lifespan(self, app: Any) -> AsyncIterator[None]:
        await self.current.start()
        following = asyncio.create_task(self._follow())
        yield
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        for generation in self._alive:
            await generation.close()
        self._followed.tell(None, self._address)

    def _changed(self) -> None:
        """The registry said so."""
        self._retry = 0.0
        self._wake.set()

    async def _follow(self) -> None:
        while True:
            await self._tell()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), self._seconds)
            self._wake.clear()
            try:
                await self._look()
            except PipelineError as error:
                self._say(f"{self._followed.alias} cannot be followed now: {error}")
            except Exception:
                log.exception("unexpected error: version %d serves on", self.current.version.number)

    async def _look(self) -> None:
        """Change over, if the alias names another version."""
        number = await in_thread(self._followed.look)
        if number in (None, self.current.version.number):
            self._say("")
            self.waiting = None
            return
        assert number is not None
        if self.waiting and self.waiting[0] == number and time.monotonic() < self._retry:
            return
        begin = time.monotonic()
        log.info("fetching", extra={"version": number})
        try:
            release = await in_thread(lambda: self._followed.fetch(number))
            if why := self._no_room(release):
                self._refuse(number, why)
                return
            app = await in_thread(lambda: self._load(release))
        except (ArtifactError, ConfigError, DataError, MissingRuntime, ResourceError) as error:
            self._refuse(number, str(error))  # it would be the same at the next look
            return
        generation = Generation(app, release.version)
        self._alive.append(generation)
        await generation.start()
        if why := await _failure(app):
            self._refuse(number, why)
            await self._retire(generation)
            return
        old = self._change(generation)
        seconds = round(time.monotonic() - begin, 1)
        extra = {"version": number, "was": old.version.number, "seconds": seconds}
        log.info("changed over", extra=extra)
        await self._tell(now=True)
        await self._retire(old)

    def _change(self, generation: Generation) -> Generation:
        """New requests go to this version from now on; the one that they went to before."""
        old, self.current = self.current, generation
        self.waiting = None
        if self.state.readiness.ended:
            generation.app.state.readiness.end()
        return old

    async def _retire(self, generation: Generation) -> None:
        """Close a version when its requests are finished, or have had their time."""
        deadline = time.monotonic() + self._drain
        while generation.count and time.monotonic() < deadline:
            await asyncio.sleep(STEP_SECONDS)
        await generation.close()
        self._alive.remove(generation)

    def _refuse(self, number: int, why: str) -> None:
        self.waiting, self._retry = (number, why), time.monotonic() + RETRY_SECONDS
        log.warning(
            "version %d is not served, version %d serves on: %s",
            number, self.current.version.number, why,
        )  # fmt: skip

    def _say(self, text: str) -> None:
        """Log a line once, not at each look."""
        if text and text != self._said:
            log.warning("%s; version %d serves on", text, self.current.version.number)
        self._said = text

    async def _tell(self, *, now: bool = False) -> None:
        """Tell the registry which version runs here, now and then."""
        if now or time.monotonic() - self._told > HEARTBEAT_SECONDS or not self._told:
            self._told = time.monotonic()
            number = self.current.version.number
            await in_thread(lambda: self._followed.tell(number, self._address))


async def _failure(app: FastAPI) -> str | None:
    """Wait until a version is ready; why it will not be, else None."""
    readiness = app.state.readiness
    while not readiness.ready and readiness.reason == WARMING:
        await asyncio.sleep(STEP_SECONDS)
    return None if readiness.ready else str(readiness.reason)


async def in_thread(call: Callable[[], T]) -> T:
    """What a call that blocks returns. Its thread ends with the process: a long download does not
    hold up a server that is to stop."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def set_result(result: T) -> None:
        if not future.done():
            future.set_result(result)

    def set_error(error: BaseException) -> None:
        if not future.done():
            future.set_exception(error)

    def work() -> None:
        try:
            result = call()
        except BaseException as error:
            _hand(loop, set_error, error)
        else:
            _hand(loop, set_result, result)

    threading.Thread(target=work, name="registry", daemon=True).start()
    return await future


def _hand(loop: asyncio.AbstractEventLoop, take: Callable[[Any], None], value: Any) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(take, value)
