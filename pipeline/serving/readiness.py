"""Whether the server can answer: only once a real answer came out of the engine."""

import asyncio
from typing import Any

from pipeline.chat import Chat
from pipeline.console import get_console
from pipeline.serving.engine import EngineFailed, QueueFull, Sampling

RETRY_SECONDS = 1.0  # between attempts at a warm-up answer


class Readiness:
    """
    Args:
        chat: None for an engine that embeds.

    Attributes:
        ready: whether it can; reason: why not.
    """

    def __init__(self, engine: Any, chat: Chat | None) -> None:
        self._engine, self._chat = engine, chat
        self.ready = False
        self.reason = "warming up"

    def why_not(self) -> str | None:
        """Why no answer can come now; None if one can."""
        return self._engine.down() if self.ready else self.reason

    async def warm_up(self) -> None:
        try:
            if self._chat is None:
                await self._engine.embed([[0]])
            else:
                prompt = self._chat.prompt([{"role": "user", "content": "Hello"}])
                sampling = Sampling(max_tokens=2, temperature=0)
                async for _ in self._engine.generate(prompt, sampling):
                    pass
            self.ready = True
        except QueueFull:  # clients came first: no probe should send more
            await asyncio.sleep(RETRY_SECONDS)
            await self.warm_up()
        except (EngineFailed, ValueError) as error:
            self.reason = f"the warm-up answer failed: {error}"
            get_console().print(f"[red]not ready[/]: {self.reason}")

    def end(self) -> None:
        self.ready, self.reason = False, "shutting down"
