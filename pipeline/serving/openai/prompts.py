"""A request's prompts as token ids for the engine.

Long requests are tokenized in a thread: megabytes of text take seconds, which would block the event
loop.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tokenizers import Tokenizer

from pipeline.core.errors import DataError
from pipeline.engines.base import Engine
from pipeline.models.chat.messages import Message
from pipeline.models.chat.renderer import Chat
from pipeline.serving.openai.conversation import (
    fields_read,
    parse_conversation,
)
from pipeline.serving.openai.errors import ApiError, invalid
from pipeline.serving.openai.prompt_types import NO_PROMPTS, are_token_ids

LONG_BYTES = 1 << 15  # about 10 ms of work
# A normalizer may write two or three characters as one.
MOST_SHRINKING = 4
# A template may leave out text, such as the reasoning of earlier turns.
MOST_DROPPED = 4
MANY_MESSAGES = 1024
KEEP_ALL = -1  # of truncate_prompt_tokens: as many as a prompt may have
GREETING = ({"role": "user", "content": "Hello"},)
T = TypeVar("T")


@dataclass(frozen=True)
class Rendering:
    """How a prompt is made, beside what it is made of.

    values: variables of the chat template.
    generation_prompt: whether the model's turn is begun. goes_on: whether it goes on with the
        conversation's last turn instead.
    keep: tokens of the prompt to keep at most; None for all. from_left: whether the others are
        left out at the beginning, else at the end.
    bos: whether a prompt of /v1/completions gets the BOS token that conversations begin with.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    generation_prompt: bool = True
    goes_on: bool = False
    keep: int | None = None
    from_left: bool = True
    bos: bool = True


PLAIN = Rendering()


class PromptRenderer:
    """Renders and tokenizes prompts for one model.

    A text that cannot fit is refused before it is tokenized, which takes a second a megabyte.
    """

    def __init__(self, chat: Chat, engine: Engine) -> None:
        self._chat = chat
        self._max_tokens = engine.max_input_len
        self._max_length = max_length(chat.tokenizer, self._max_tokens)
        # A tokenizer may have tokens that the model lacks.
        self._fields = fields_read(chat.template.source)
        rows = getattr(engine, "vocab_size", None)
        self._rows = rows if rows is not None and rows < chat.vocab_size else None
        first = chat.prompt(GREETING)[:1]
        bos = chat.special_tokens.get("bos_token")
        self._begin = first if bos and first == [chat.tokenizer.token_to_id(bos)] else []

    async def chat(
        self,
        messages: list[Any],
        tools: Sequence[Mapping[str, Any]] | None,
        size: int,
        how: Rendering = PLAIN,
    ) -> list[int]:
        """The prompt of a conversation, up to where the model's turn begins.

        Args:
            tools: tools that the model may call.
            size: bytes of the request.

        Raises:
            ApiError: a message is malformed, or the model's template refuses the conversation.
        """

        if len(messages) > max(self._max_tokens, MANY_MESSAGES):
            text = f"there are {len(messages)} messages, and a prompt has {self._max_tokens} tokens"
            raise invalid("messages", text, "context_length_exceeded")
        longest = sum(map(_length, messages))
        if longest > MOST_DROPPED * self._max_length:
            raise self._too_long("messages", longest)

        def render() -> list[int]:
            try:
                turns = parse_conversation(messages, self._fields)
                return self._encode(self._text(turns, tools, how), "messages", how)
            except DataError as error:
                raise invalid("messages", str(error)) from error
            except RecursionError:
                text = "messages or tools are nested too deeply: send a flatter structure"
                raise invalid("messages", text) from None

        return await _in_thread_if_long(render, size)

    def _text(
        self, turns: list[Message], tools: Sequence[Mapping[str, Any]] | None, how: Rendering
    ) -> str:
        if how.goes_on or not how.generation_prompt:
            return self._chat.open_text(
                turns, goes_on=how.goes_on, tools=tools, variables=how.values
            )
        return self._chat.text(turns, generation_prompt=True, tools=tools, variables=how.values)

    async def completions(
        self, prompts: Sequence[str | list[int]], size: int, how: Rendering = PLAIN
    ) -> list[list[int]]:
        """Prompts of /v1/completions. Text gets a BOS token if the model's conversations have one.

        Args:
            size: bytes of the request.

        Raises:
            ApiError: a text cannot be encoded, or a token id is not in the vocabulary.
        """
        return await _in_thread_if_long(
            lambda: [self._ids(prompt, how) for prompt in prompts], size
        )

    def _ids(self, prompt: str | list[int], how: Rendering) -> list[int]:
        if isinstance(prompt, str):
            try:
                return self._encode(prompt, "prompt", how, self._begin if how.bos else [])
            except DataError as error:
                raise invalid("prompt", str(error)) from None
        if how.keep is not None:
            prompt = self._kept(prompt, how)
        if len(prompt) > self._max_tokens:
            return prompt  # which is refused by its length
        highest = (self._rows or self._chat.vocab_size) - 1
        if not are_token_ids(prompt):
            raise invalid("prompt", NO_PROMPTS)
        if min(prompt) < 0 or max(prompt) > highest:
            raise invalid("prompt", f"token ids must be from 0 to {highest}")
        return prompt

    def _kept(self, ids: list[int], how: Rendering) -> list[int]:
        most = self._max_tokens if how.keep in (None, KEEP_ALL) else how.keep or 0
        if len(ids) <= most:
            return ids
        return ids[len(ids) - most :] if how.from_left else ids[:most]

    def _encode(
        self, text: str, field: str, how: Rendering, begin: Sequence[int] = ()
    ) -> list[int]:
        """
        Args:
            begin: tokens that come first, unless they do already.

        Raises:
            ApiError: it is too long for any prompt, or has a token that the model lacks.
        """
        if how.keep is not None:  # what cannot be among the kept tokens need not be tokenized
            text = text[-self._max_length :] if how.from_left else text[: self._max_length]
        elif cannot_fit(text, self._max_length):
            raise self._too_long(field, len(text))
        ids = self._chat.encode(text)
        if ids[: len(begin)] != list(begin):
            ids = [*begin, *ids]
        if how.keep is not None:
            ids = self._kept(ids, how)
        if self._rows and max(ids, default=0) >= self._rows:
            odd = next(token for token in ids if token >= self._rows)
            word = self._chat.tokenizer.id_to_token(odd)
            raise invalid(
                field,
                f"{word!r} is the token {odd}, and the model's vocabulary ends at "
                f"{self._rows - 1}: leave it out",
            )
        return ids

    def _too_long(self, field: str, length: int) -> ApiError:
        return invalid(
            field,
            f"This model's maximum prompt length is {self._max_tokens} tokens. However, your "
            f"prompt has {length} characters, which cannot fit. Please shorten it.",
            "context_length_exceeded",
        )


def max_length(tokenizer: Tokenizer, max_tokens: int) -> int:
    """Characters, without white space, that a text of so many tokens can have."""
    longest = max(map(len, tokenizer.get_vocab(with_added_tokens=True)), default=1)
    return MOST_SHRINKING * max_tokens * longest


def cannot_fit(text: str, most: int) -> bool:
    """Whether a text has too many characters for any tokens of a prompt: see max_length."""
    return len(text) > most and len("".join(text.split())) > most


def _length(message: Any) -> int:
    """Characters of a message's text."""
    content = message.get("content") if isinstance(message, dict) else None
    return len(content) if isinstance(content, str) else 0


async def _in_thread_if_long(work: Callable[[], T], size: int) -> T:
    return await asyncio.to_thread(work) if size > LONG_BYTES else work()
