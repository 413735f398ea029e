"""Whether the server can answer: only once a real answer came out of the engine."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from pipeline.engines.base import EngineFailed, QueueFull, Sampling
from pipeline.models.chat.renderer import Chat

log = logging.getLogger("pipeline.serving")

RETRY_SECONDS = 1.0  # between attempts at a warm-up answer


class Readiness:
    """
    Args:
        chat: None for an engine that embeds.

    Attributes:
        ready: whether it can; reason: why not.
        announce: called in the moment when it can, before any client can see that.
    """

    def __init__(self, engine: Any, chat: Chat | None) -> None:
        self._engine, self._chat = engine, chat
        self.ready = False
        self.reason = "warming up"
        self.announce: Callable[[], None] = lambda: None
        self._ended = False

    def why_not(self) -> str | None:
        """Why no answer can come now; None if one can."""
        return self._engine.down() if self.ready else self.reason

    async def warm_up(self) -> None:
        """Ask until there is an answer, or a failure that lasts."""
        while True:
            try:
                await self._ask()
                if not self._ended:
                    self.ready = True
                    self.announce()
                return
            except QueueFull:  # clients came first: no probe should send more
                pass
            except (EngineFailed, ValueError) as error:
                down = self._engine.down()
                self.reason = down or f"the warm-up answer failed: {error}"
                log.error("not ready: %s", self.reason)
                if down is None:
                    return
            await asyncio.sleep(RETRY_SECONDS)

    async def _ask(self) -> None:
        if self._chat is None:
            await self._engine.embed([[0]])
            return
        prompt = self._chat.prompt([{"role": "user", "content": "Hello"}])
        # Ended as a client's would be: not every server behind can go on past a model's end.
        how = Sampling(max_tokens=2, temperature=0, stop_ids=frozenset(self._chat.stop_ids))
        async for _ in self._engine.generate(prompt, how):
            pass

    def fail(self, reason: str) -> None:
        """It can never answer."""
        self.reason = reason
        log.error("not ready: %s", reason)

    def end(self) -> None:
        """No new request should come, whether or not it was ready."""
        self.ready, self.reason, self._ended = False, "shutting down", True
