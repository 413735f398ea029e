"""A request's prompts as token ids for the engine.

Long requests are tokenized in a thread: megabytes of text take seconds, which would block the event
loop.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from pipeline.core.errors import DataError
from pipeline.models.chat.renderer import Chat
from pipeline.serving.openai.conversation import parse_conversation
from pipeline.serving.openai.protocol import invalid

LONG_BYTES = 1 << 15  # about 10 ms of work
GREETING = ({"role": "user", "content": "Hello"},)
T = TypeVar("T")


class PromptRenderer:
    """Renders and tokenizes prompts for one model."""

    def __init__(self, chat: Chat) -> None:
        self._chat = chat
        first = chat.prompt(GREETING)[:1]
        bos = chat.special_tokens.get("bos_token")
        self._begin = first if bos and first == [chat.tokenizer.token_to_id(bos)] else []

    async def chat(
        self, messages: list[Any], tools: Sequence[Mapping[str, Any]] | None, size: int
    ) -> list[int]:
        """The prompt of a conversation, up to where the model's turn begins.

        Args:
            tools: tools that the model may call.
            size: bytes of the request.

        Raises:
            ApiError: a message is malformed, or the model's template refuses the conversation.
        """

        def render() -> list[int]:
            try:
                turns = parse_conversation(messages)
                text = self._chat.text(turns, generation_prompt=True, tools=tools)
                return self._chat.encode(text)
            except DataError as error:
                raise invalid("messages", str(error)) from error
            except RecursionError:
                text = "messages or tools are nested too deeply: send a flatter structure"
                raise invalid("messages", text) from None

        return await _in_thread_if_long(render, size)

    async def completions(self, prompts: Sequence[str | list[int]], size: int) -> list[list[int]]:
        """Prompts of /v1/completions. Text gets a BOS token if the model's conversations have one.

        Args:
            size: bytes of the request.

        Raises:
            ApiError: a text cannot be encoded, or a token id is not in the vocabulary.
        """
        return await _in_thread_if_long(lambda: [self._ids(prompt) for prompt in prompts], size)

    def _ids(self, prompt: str | list[int]) -> list[int]:
        if isinstance(prompt, str):
            try:
                ids = self._chat.encode(prompt)
            except DataError as error:
                raise invalid("prompt", str(error)) from None
            return ids if ids[:1] == self._begin else self._begin + ids
        highest = self._chat.vocab_size - 1
        if min(prompt) < 0 or max(prompt) > highest:
            raise invalid("prompt", f"token ids must be from 0 to {highest}")
        return prompt


async def _in_thread_if_long(work: Callable[[], T], size: int) -> T:
    return await asyncio.to_thread(work) if size > LONG_BYTES else work()
