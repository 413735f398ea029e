"""What a request asks, as the engine's token ids; made in a thread where the request is long.

A text of megabytes takes seconds, in which the event loop would answer nobody.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from pipeline.core.errors import DataError
from pipeline.models.chat.renderer import Chat
from pipeline.serving.openai.conversation import parse_conversation
from pipeline.serving.openai.protocol import invalid

LONG_BYTES = 1 << 15  # some 10 ms of work
GREETING = ({"role": "user", "content": "Hello"},)
Made = TypeVar("Made")


class Prompts:
    """Those of one model."""

    def __init__(self, chat: Chat) -> None:
        self._chat = chat
        first = chat.prompt(GREETING)[:1]
        bos = chat.special_tokens.get("bos_token")
        self._begin = first if bos and first == [chat.tokenizer.token_to_id(bos)] else []

    async def of_chat(
        self, messages: list[Any], tools: Sequence[Mapping[str, Any]] | None, size: int
    ) -> list[int]:
        """A conversation up to where the answer begins.

        Args:
            tools: those that the model may call.
            size: bytes of the request.

        Raises:
            Refusal: the conversation is none, or the model's template does not take it.
        """

        def made() -> list[int]:
            try:
                turns = parse_conversation(messages)
                return self._chat.encode(
                    self._chat.text(turns, generation_prompt=True, tools=tools)
                )
            except DataError as error:
                raise invalid("messages", str(error)) from error
            except RecursionError:
                text = "messages or tools are nested hundreds deep: send them flatter"
                raise invalid("messages", text) from None

        return await _aside(made, size)

    async def of_texts(self, prompts: Sequence[str | list[int]], size: int) -> list[list[int]]:
        """Prompts of completions; text begins as the model's conversations do.

        Args:
            size: bytes of the request.

        Raises:
            Refusal: one is no text, or holds a token that the model does not have.
        """
        return await _aside(lambda: [self._ids(prompt) for prompt in prompts], size)

    def _ids(self, prompt: str | list[int]) -> list[int]:
        if isinstance(prompt, str):
            try:
                ids = self._chat.encode(prompt)
            except DataError as error:
                raise invalid("prompt", str(error)) from None
            return ids if ids[:1] == self._begin else self._begin + ids
        highest = self._chat.vocab_size - 1
        if min(prompt) < 0 or max(prompt) > highest:
            raise invalid("prompt", f"token ids go from 0 to {highest}")
        return prompt


async def _aside(made: Callable[[], Made], size: int) -> Made:
    return await asyncio.to_thread(made) if size > LONG_BYTES else made()
