"""Tool calls: the format in which a chat template writes them, and a parser of that format.

The format does not depend on the model's name. It is detected from the template: a call with known
words is rendered, and the text around its JSON is how this model begins and ends a call. That
covers the templates of Qwen and Hermes (`<tool_call>…</tool_call>`), Llama 3 (bare JSON with
`parameters`) and Mistral (`[TOOL_CALLS] […]`). Calls in XML or Python are not supported.
"""

import json
import secrets
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.core.errors import DataError
from pipeline.engines.base import Guide
from pipeline.engines.batching.guided_decoding import OPTIONS_KEY, with_options
from pipeline.models.chat.renderer import Chat
from pipeline.serving.openai.grammars import Tagged, encode, literals, tags_guide

NAME, KEY, VALUE, TEXT = "probe_name", "probe_key", "probe_value", "probe_text"
# Mistral's templates require nine letters and digits.
ID_LENGTH = 9
_LETTERS = string.ascii_letters + string.digits
_DECODER = json.JSONDecoder()


@dataclass(frozen=True)
class ToolCall:
    """One tool call. `arguments` is JSON."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class ToolCallFormat:
    """A call is `opening`, JSON with `name` and `arguments_key`, then `closing`.

    listed: whether the JSON is a list of calls.
    """

    opening: str
    closing: str
    arguments_key: str
    listed: bool


def accepts_tools(chat: Chat) -> bool:
    """Whether the template renders the list of tools."""
    try:
        return NAME in chat.text(_question(), generation_prompt=True, tools=_tools())
    except DataError:
        return False


def tool_call_format(chat: Chat) -> ToolCallFormat | None:
    """The format in which the template writes tool calls; None if it is not supported."""
    call = {"name": NAME, "arguments": {KEY: VALUE}}
    turn = {
        "role": "assistant",
        "content": TEXT,
        "tool_calls": [{"id": new_id(), "type": "function", "function": call}],
    }
    try:
        before = chat.text(_question(), tools=_tools())
        prompt = chat.text(_question(), generation_prompt=True, tools=_tools())
        whole = chat.text([*_question(), turn], tools=_tools())
    except DataError:
        return None
    begin = next((text for text in (prompt, before) if whole.startswith(text)), None)
    if begin is None:
        return None
    # The call comes after the turn's own text, if the template renders both.
    written = whole[len(begin) :].rpartition(TEXT)[2]
    for start, letter in enumerate(written):
        if letter not in "[{":
            continue
        try:
            value, end = _DECODER.raw_decode(written, start)
        except ValueError:
            continue
        listed = isinstance(value, list)
        found = value[0] if listed and len(value) == 1 else value
        keys = [k for k, v in found.items() if v == {KEY: VALUE}] if _is_call(found) else []
        if keys:
            closing = _before_end_of_turn(chat, written[end:])
            return ToolCallFormat(written[:start].lstrip(), closing, keys[0], listed)
    return None


def guide_for(
    chat: Chat,
    call_format: ToolCallFormat,
    tools: Sequence[Mapping[str, Any]],
    json_whitespace: int = 0,
    *,
    optional: bool = False,
    most: int | None = None,
) -> Guide:
    """A guide to exactly one call of one of these tools, with arguments of its schema.

    Args:
        json_whitespace: characters of white space that its JSON may have at each gap.
        optional: whether the answer may also be text, or text with calls in it. Then only the
            arguments of strict tools have their schema.
        most: calls in such text at most; None for any number.
    """
    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"const": tool["function"]["name"]},
                call_format.arguments_key: _as_resource(
                    None
                    if optional and not tool["function"].get("strict")
                    else tool["function"].get("parameters"),
                    index,
                ),
            },
            "required": ["name", call_format.arguments_key],
            "additionalProperties": False,
        }
        for index, tool in enumerate(tools)
    ]
    schema: dict[str, Any] = calls[0] if len(calls) == 1 else {"anyOf": calls}
    if call_format.listed:
        several = {} if optional and most is None else {"maxItems": 1}
        schema = {"type": "array", "items": schema, "minItems": 1, **several}
    if optional and call_format.opening:
        tag = Tagged("", schema, call_format.closing)
        return tags_guide(chat, {call_format.opening: [tag]}, json_whitespace, most=most)
    schema = with_options(schema, json_whitespace)
    if optional:  # a call has no opening, so it is what an answer begins with
        text = f"start: call | text\ncall: %json {json.dumps(schema)}\n"
        return Guide("lark", text + r"text: /([^\s{\[](.|\n)*)?/" + "\n")
    parts = [*literals(chat, call_format.opening), "call", *literals(chat, call_format.closing)]
    return Guide("lark", f"start: {' '.join(parts)}\ncall: %json {json.dumps(schema)}\n")


class ToolCallParser:
    """Splits one choice, while it is generated, into text and tool calls."""

    def __init__(self, call_format: ToolCallFormat) -> None:
        self._key = call_format.arguments_key
        self._opening, self._closing = call_format.opening.strip(), call_format.closing.strip()
        self._text = ""  # not returned yet
        self._in_call = self._after_call = False
        self._may_call = True  # without an opening, a call can only be at the beginning

    def feed(self, text: str) -> tuple[str, list[ToolCall]]:
        """Add text. Returns the text and the calls that are now complete."""
        self._text += text
        shown = ""
        calls: list[ToolCall] = []
        while True:
            if self._after_call and not self._drop_closing():
                return shown, calls
            if not self._in_call:
                shown += self._text_before_call()
            if not self._in_call or not (found := self._parse_calls()):
                return shown, calls
            calls += found

    def finish(self) -> str:
        """The remaining text at the end. An incomplete call is text."""
        rest, self._text = self._text, ""
        if self._after_call:
            return ""
        return (self._opening + rest) if self._in_call else rest

    def _drop_closing(self) -> bool:
        """Drop the closing of a call. False while it may be incomplete."""
        self._text = self._text.lstrip()
        if len(self._text) < len(self._closing) and self._closing.startswith(self._text):
            return False
        self._text = self._text.removeprefix(self._closing)
        self._after_call = False
        return True

    def _text_before_call(self) -> str:
        """The text that cannot be a part of a call. Enters the call if one has begun."""
        if not self._opening:
            begun = self._text.lstrip()
            if not self._may_call or begun[:1] not in ("", "{", "["):
                self._may_call = False
                return self._take(len(self._text))
            self._in_call = bool(begun)
            return ""
        at = self._text.find(self._opening)
        if at >= 0:
            shown = self._take(at).rstrip()
            self._take(len(self._opening))
            self._in_call = True
            return shown
        end = len(self._text)
        for size in range(min(len(self._opening) - 1, end), 0, -1):
            if self._text.endswith(self._opening[:size]):
                end -= size
                break
        return self._take(len(self._text[:end].rstrip()))

    def _parse_calls(self) -> list[ToolCall]:
        """The calls whose JSON is complete."""
        begun = self._text.lstrip()
        try:
            value, end = _DECODER.raw_decode(begun)
            found = value if isinstance(value, list) else [value]
            calls = [self._tool_call(call) for call in found]
        except (ValueError, KeyError, TypeError, RecursionError):
            return []
        self._text = begun[end:]
        self._in_call, self._may_call, self._after_call = False, False, bool(self._closing)
        return calls

    def _tool_call(self, found: Any) -> ToolCall:
        """
        Raises:
            ValueError, KeyError, TypeError: it is not a call, or its arguments are not valid JSON
                (NaN is not).
        """
        name, arguments = found["name"], found[self._key]
        if not isinstance(name, str):
            raise TypeError(name)
        text = arguments if isinstance(arguments, str) else json.dumps(arguments)
        json.dumps(json.loads(text), allow_nan=False)
        return ToolCall(new_id(), _encodable(name), _encodable(text))

    def _take(self, count: int) -> str:
        taken, self._text = self._text[:count], self._text[count:]
        return taken


def new_id() -> str:
    return "".join(secrets.choice(_LETTERS) for _ in range(ID_LENGTH))


def has_control_tokens(chat: Chat, call_format: ToolCallFormat) -> bool:
    """Whether the opening of a call has control tokens, which decoding leaves out by default."""
    return chat.decode(encode(chat, call_format.opening)).strip() != call_format.opening.strip()


def _encodable(text: str) -> str:
    """Replaces halves of surrogate pairs, which JSON escapes can produce, by question marks."""
    return text.encode(errors="replace").decode()


def _as_resource(parameters: Mapping[str, Any] | None, index: int) -> dict[str, Any]:
    """A tool's schema for use inside another: its `$id` makes `$ref`s start at its own root.

    `$schema` is removed, because old drafts ignore an `$id` beside a `$ref`.
    """
    found = {**(parameters or {"type": "object"}), "$id": f"urn:tool:{index}"}
    found.pop("$schema", None)
    found.pop(OPTIONS_KEY, None)
    return found


def _is_call(value: Any) -> bool:
    return isinstance(value, dict) and value.get("name") == NAME


def _question() -> list[dict[str, Any]]:
    return [{"role": "user", "content": "a"}]


def _tools() -> list[dict[str, Any]]:
    parameters = {"type": "object", "properties": {KEY: {"type": "string"}}, "required": [KEY]}
    function = {"name": NAME, "description": "a", "parameters": parameters}
    return [{"type": "function", "function": function}]


def _before_end_of_turn(chat: Chat, text: str) -> str:
    """The part of a text before the stop token of the assistant's turn."""
    ends = [chat.decode([i], control_tokens=True) for i in chat.stop_ids]
    return text[: min((at for at in map(text.find, ends) if at >= 0), default=len(text))]
