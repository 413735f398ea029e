"""Chat templates: Jinja programs that come with a model and cannot be trusted.

A sandbox keeps them away from the process. Units of work keep them from filling the memory and
from running forever; see `template_work`. Their environment is the one that transformers provides.
"""

import re
from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from itertools import accumulate
from typing import Any

from jinja2 import Template, meta

from pipeline.core.errors import DataError
from pipeline.models.chat.messages import Message, Unusable
from pipeline.models.chat.template_environment import BEGIN, END, PricedEnvironment, environment
from pipeline.models.chat.template_work import WorkContext, work_for
from pipeline.models.chat.tool_calls import as_request

MAX_BYTES = 2**16
MAX_CHARACTERS = 2**24  # of a rendered conversation
_GENERATION = re.compile(r"\{%[-+]?\s*generation\b")
LONGEST_REASON = 300  # characters of what a template says when it refuses


class ChatTemplate:
    """A compiled chat template.

    Args:
        source: the Jinja text.
        special_tokens: bos_token, eos_token … as the template may name them.
        origin: where it comes from, for messages.

    Raises:
        DataError: it is too long, or not Jinja.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str], origin: str) -> None:
        if len(source) > MAX_BYTES:
            raise DataError(
                f"the chat template of {origin} is over {MAX_BYTES // 2**10} KiB: shorten it"
            )
        self.source = source
        self._special_tokens = dict(special_tokens)
        self._origin = origin
        try:
            self._template = _environment().from_string(source)
        except Exception as error:  # as a stranger's file can raise anything in a compiler
            raise DataError(
                f"the chat template of {origin} is not valid Jinja ({_reason(error)}): correct it"
            ) from error

    @property
    def is_dated(self) -> bool:
        """Whether it can print today's date, so that the same conversation differs tomorrow."""
        return "strftime_now" in self.source

    def expand(
        self,
        messages: Sequence[Message],
        *,
        generation_prompt: bool,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The conversation as text.

        Args:
            tools: those that may be called, in OpenAI's form.
            variables: more values by the names that the template reads, such as enable_thinking.

        Raises:
            Unusable: the template refuses it, does too much work, or uses what it may not.
        """
        return self._expand(self._template, messages, generation_prompt, tools, variables)

    @cached_property
    def variables(self) -> frozenset[str]:
        """The names that the template reads and does not define."""
        parsed = _environment().parse(self.source)
        return frozenset(meta.find_undeclared_variables(parsed))

    @property
    def has_marks(self) -> bool:
        """Whether it has generation blocks, which mark what the assistant writes."""
        return bool(_GENERATION.search(self.source))

    def answers(
        self,
        messages: Sequence[Message],
        text: str,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[tuple[int, int]]:
        """Where the template's own generation blocks begin and end in the text of a conversation.

        None at all if the text is not what the template writes, or holds the marks itself.

        Raises:
            Unusable: as for `expand`.
        """
        if not self.has_marks:
            return []
        pieces = re.split(f"([{BEGIN}{END}])", self._expand(self._marked, messages, False, tools))
        marks, texts = pieces[1::2], pieces[::2]
        if marks != [BEGIN, END] * (len(marks) // 2) or "".join(texts) != text:
            return []
        ends = list(accumulate(map(len, texts)))
        return list(zip(ends[::2], ends[1::2], strict=False))

    @cached_property
    def _text_arguments(self) -> bool:
        """Whether it takes the arguments of a call as JSON text: it cannot write them otherwise."""
        call = {"id": "call00000", "type": "function", "function": {"name": "f", "arguments": {}}}
        turns: list[Message] = [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
        ]

        def is_written(messages: Sequence[Message]) -> bool:
            try:
                return "f" in self._render(self._template, messages, False, None)
            except Unusable:
                return False

        return not is_written(turns) and is_written(_with_text_arguments(turns))

    @cached_property
    def _marked(self) -> Template:
        return _environment(marked=True).from_string(self.source)

    def _expand(
        self,
        template: Template,
        messages: Sequence[Message],
        generation_prompt: bool,
        tools: Sequence[Mapping[str, Any]] | None,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        if any(message.get("tool_calls") for message in messages) and self._text_arguments:
            messages = _with_text_arguments(messages)
        return self._render(template, messages, generation_prompt, tools, variables)

    def _render(
        self,
        template: Template,
        messages: Sequence[Message],
        generation_prompt: bool,
        tools: Sequence[Mapping[str, Any]] | None,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        context = template.new_context(
            {
                "documents": None,
                **(variables or {}),
                "messages": [m if type(m) is dict else dict(m) for m in messages],
                "tools": tools,
                "add_generation_prompt": generation_prompt,
                **self._special_tokens,
            }
        )
        assert isinstance(context, WorkContext)
        context.left = work_for(messages)
        try:
            text = "".join(template.root_render_func(context))
            if len(text) > MAX_CHARACTERS:
                context.refuse()
        except Exception as error:  # foreign code can raise anything
            raise Unusable(
                "refused by the template", f"{_reason(error)} (chat template of {self._origin})"
            ) from error
        return text


def _with_text_arguments(messages: Sequence[Message]) -> list[Message]:
    """The conversation with the arguments of its calls as JSON text, as OpenAI's API has them."""
    return [as_request(m) if m.get("tool_calls") else m for m in messages]


def _reason(error: Exception) -> str:
    return str(error)[:LONGEST_REASON] or type(error).__name__


@cache
def _environment(*, marked: bool = False) -> PricedEnvironment:
    return environment(marked=marked)
