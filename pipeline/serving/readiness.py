"""Readiness of the server: it is ready once the engine has generated a first token."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from pipeline.engines.base import EngineFailed, QueueFull, Sampling
from pipeline.models.chat.renderer import Chat

log = logging.getLogger("pipeline.serving")

RETRY_SECONDS = 1.0  # between warm-up requests


class Readiness:
    """
    Args:
        chat: the model's renderer; None for an engine that generates no text.

    Attributes:
        ready: whether the server is ready.
        reason: why it is not.
        announce: called when it becomes ready, before any client can see that.
    """

    def __init__(self, engine: Any, chat: Chat | None) -> None:
        self._engine, self._chat = engine, chat
        self.ready = False
        self.reason = "warming up"
        self.announce: Callable[[], None] = lambda: None
        self._ended = False

    def reason_not_ready(self) -> str | None:
        """Why the server cannot generate now; None if it can."""
        return self._engine.down() if self.ready else self.reason

    async def warm_up(self) -> None:
        """Send a request to the engine until one succeeds, or fails for good."""
        while True:
            try:
                await self._generate()
                if not self._ended:
                    self.ready = True
                    self.announce()
                return
            except QueueFull:  # clients came first; the server is not ready for more
                pass
            except (EngineFailed, ValueError) as error:
                down = self._engine.down()
                self.reason = down or f"the warm-up request failed: {error}"
                log.error("not ready: %s", self.reason)
                if down is None:
                    return
            await asyncio.sleep(RETRY_SECONDS)

    async def _generate(self) -> None:
        if "scores" in self._engine.features:
            await self._engine.score([[0]], [[0]])
            return
        if self._chat is None:
            await self._engine.embed([[0]])
            return
        prompt = self._chat.prompt([{"role": "user", "content": "Hello"}])
        # With stop ids, as for clients: a remote server may not support generation without them.
        sampling = Sampling(max_tokens=2, temperature=0, stop_ids=frozenset(self._chat.stop_ids))
        async for _ in self._engine.generate(prompt, sampling):
            pass

    def fail(self, reason: str) -> None:
        """The server will never be ready."""
        self.reason = reason
        log.error("not ready: %s", reason)

    def end(self) -> None:
        """The server shuts down, and should get no new requests."""
        self.ready, self.reason, self._ended = False, "shutting down", True
