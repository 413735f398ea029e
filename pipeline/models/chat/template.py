"""Chat templates: Jinja programs that come with a model and cannot be trusted.

A sandbox keeps them away from the process. Limits keep them from filling the memory and from
running forever. Their environment is the one that transformers provides.
"""

import json
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

from pipeline.core.errors import DataError
from pipeline.models.chat.messages import Message, Unusable

MAX_BYTES = 2**20
MAX_CHARACTERS = 2**24  # of a rendered conversation
MAX_SECONDS = 10.0
MAX_EXPONENT = 64


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
        except (jinja2.TemplateError, RecursionError) as error:
            raise DataError(
                f"the chat template of {origin} is not valid Jinja ({error}): correct it"
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
    ) -> str:
        """The conversation as text. `tools`: those that may be called, in OpenAI's form.

        Raises:
            Unusable: the template refuses it, or exceeds the limits of size or time.
        """
        deadline = time.monotonic() + MAX_SECONDS
        chunks, size = [], 0
        try:
            for chunk in self._template.generate(
                messages=[dict(m) for m in messages],
                tools=tools,
                documents=None,
                add_generation_prompt=generation_prompt,
                **self._special_tokens,
            ):
                chunks.append(chunk)
                size += len(chunk)
                if size > MAX_CHARACTERS or time.monotonic() > deadline:
                    raise jinja2.TemplateError("it renders without end")
        except Exception as error:  # foreign code can raise anything
            raise Unusable(
                "refused by the template", f"{error} (chat template of {self._origin})"
            ) from error
        return "".join(chunks)


class _Sandbox(ImmutableSandboxedEnvironment):
    """Allows only products and powers of a limited size: `'x' * 10**10` would fill the memory."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        for sized, count in ((left, right), (right, left)):
            if hasattr(sized, "__len__") and len(sized) * count > MAX_CHARACTERS:
                raise jinja2.TemplateError("it repeats a text without end")
        if operator == "**" and abs(left) > 1 and right > MAX_EXPONENT:
            raise jinja2.TemplateError("it raises a number without end")
        return super().call_binop(context, operator, left, right)


class _Generation(Extension):
    """The `{% generation %}` block of newer templates, which marks what the assistant writes."""

    tags = {"generation"}  # noqa: RUF012 (as jinja2 declares it)

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(
            parser.parse_statements(("name:endgeneration",), drop_needle=True)
        ).set_lineno(line)


def _environment() -> _Sandbox:
    def tojson(value: object, **options: Any) -> str:
        return json.dumps(value, **{"ensure_ascii": False, **options})

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = _Sandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment
