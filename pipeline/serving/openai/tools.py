"""Tools: how a model's chat template writes a call, and calls read out of answers again.

The style is not looked up by the model's name but read off of its template: a call with known words
is rendered, and what stands around its JSON is how this model begins and ends a call. That covers
the templates of Qwen and Hermes (`<tool_call>…</tool_call>`), Llama 3 (bare JSON with `parameters`)
and Mistral (`[TOOL_CALLS] […]`); those that write calls as XML, or in Python, are not known.
"""

import json
import secrets
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.core.errors import DataError
from pipeline.engines.base import Guide
from pipeline.models.chat.renderer import Chat

NAME, KEY, VALUE, TEXT = "probe_name", "probe_key", "probe_value", "probe_text"
# Nine letters and digits: what Mistral's templates insist on.
ID_LENGTH = 9
_LETTERS = string.ascii_letters + string.digits
_DECODER = json.JSONDecoder()


@dataclass(frozen=True)
class Call:
    """A call of a tool; `arguments` is JSON."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Style:
    """How a call is written: `opening`, JSON with `name` and `arguments_key`, `closing`.

    listed: the JSON is a list of calls.
    """

    opening: str
    closing: str
    arguments_key: str
    listed: bool


def takes_tools(chat: Chat) -> bool:
    """Whether the template shows the model which tools there are."""
    try:
        return NAME in chat.text(_asked(), generation_prompt=True, tools=_tools())
    except DataError:
        return False


def style_of(chat: Chat) -> Style | None:
    """How the template writes the assistant's calls; None if in no form that is known."""
    call = {"name": NAME, "arguments": {KEY: VALUE}}
    turn = {
        "role": "assistant",
        "content": TEXT,
        "tool_calls": [{"id": new_id(), "type": "function", "function": call}],
    }
    try:
        before = chat.text(_asked(), tools=_tools())
        prompt = chat.text(_asked(), generation_prompt=True, tools=_tools())
        whole = chat.text([*_asked(), turn], tools=_tools())
    except DataError:
        return None
    begin = next((text for text in (prompt, before) if whole.startswith(text)), None)
    if begin is None:
        return None
    # Behind the turn's own text, where the template shows it beside a call.
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
            return Style(written[:start].lstrip(), closing, keys[0], listed)
    return None


def guide_for(chat: Chat, style: Style, tools: Sequence[Mapping[str, Any]]) -> Guide:
    """An answer that is one call of one of these tools, with arguments of its schema."""
    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"const": tool["function"]["name"]},
                style.arguments_key: _as_resource(tool["function"].get("parameters"), index),
            },
            "required": ["name", style.arguments_key],
            "additionalProperties": False,
        }
        for index, tool in enumerate(tools)
    ]
    schema: dict[str, Any] = calls[0] if len(calls) == 1 else {"anyOf": calls}
    if style.listed:
        schema = {"type": "array", "items": schema, "minItems": 1, "maxItems": 1}
    parts = [*_literals(chat, style.opening), "call", *_literals(chat, style.closing)]
    return Guide("lark", f"start: {' '.join(parts)}\ncall: %json {json.dumps(schema)}\n")


class CallReader:
    """Takes one answer apart, while it comes, into text and calls."""

    def __init__(self, style: Style) -> None:
        self._key = style.arguments_key
        self._opening, self._closing = style.opening.strip(), style.closing.strip()
        self._text = ""  # not given out yet
        self._in_call = self._behind_call = False
        self._may_call = True  # without an opening, only the answer's beginning can be a call

    def feed(self, text: str) -> tuple[str, list[Call]]:
        """The text and the calls that these characters complete."""
        self._text += text
        shown = ""
        calls: list[Call] = []
        while True:
            if self._behind_call and not self._passed_closing():
                return shown, calls
            if not self._in_call:
                shown += self._until_call()
            if not self._in_call or not (found := self._read()):
                return shown, calls
            calls += found

    def finish(self) -> str:
        """What is left at the end of the answer; a call that was cut off is text."""
        rest, self._text = self._text, ""
        if self._behind_call:
            return ""
        return (self._opening + rest) if self._in_call else rest

    def _passed_closing(self) -> bool:
        """Drop what closes a call; False while it may not be there in full."""
        self._text = self._text.lstrip()
        if len(self._text) < len(self._closing) and self._closing.startswith(self._text):
            return False
        self._text = self._text.removeprefix(self._closing)
        self._behind_call = False
        return True

    def _until_call(self) -> str:
        """Text that surely belongs to no call; goes on into the call if one has begun."""
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

    def _read(self) -> list[Call]:
        """Calls whose JSON is complete."""
        begun = self._text.lstrip()
        try:
            value, end = _DECODER.raw_decode(begun)
            calls = [self._call(found) for found in (value if isinstance(value, list) else [value])]
        except (ValueError, KeyError, TypeError, RecursionError):
            return []
        self._text = begun[end:]
        self._in_call, self._may_call, self._behind_call = False, False, bool(self._closing)
        return calls

    def _call(self, found: Any) -> Call:
        """
        Raises:
            ValueError, KeyError, TypeError: it is no call, or its arguments are no JSON, as NaN is.
        """
        name, arguments = found["name"], found[self._key]
        if not isinstance(name, str):
            raise TypeError(name)
        text = arguments if isinstance(arguments, str) else json.dumps(arguments)
        json.dumps(json.loads(text), allow_nan=False)
        return Call(new_id(), _encodable(name), _encodable(text))

    def _take(self, count: int) -> str:
        taken, self._text = self._text[:count], self._text[count:]
        return taken


def new_id() -> str:
    return "".join(secrets.choice(_LETTERS) for _ in range(ID_LENGTH))


def has_control_tokens(chat: Chat, style: Style) -> bool:
    """Whether a call's marks are tokens that are left out of an answer's text."""
    return chat.decode(_encode(chat, style.opening)).strip() != style.opening.strip()


def _encodable(text: str) -> str:
    """With ? for halves of surrogate pairs, which escapes in JSON can stand for."""
    return text.encode(errors="replace").decode()


def _as_resource(parameters: Mapping[str, Any] | None, index: int) -> dict[str, Any]:
    """A tool's schema as it can stand inside of another: its `$ref`s begin at its own root.

    That is what an `$id` is for. `$schema` goes: a draft of old ignores an `$id` beside a `$ref`.
    """
    found = {**(parameters or {"type": "object"}), "$id": f"urn:tool:{index}"}
    found.pop("$schema", None)
    return found


def _is_call(value: Any) -> bool:
    return isinstance(value, dict) and value.get("name") == NAME


def _asked() -> list[dict[str, Any]]:
    return [{"role": "user", "content": "a"}]


def _tools() -> list[dict[str, Any]]:
    parameters = {"type": "object", "properties": {KEY: {"type": "string"}}, "required": [KEY]}
    function = {"name": NAME, "description": "a", "parameters": parameters}
    return [{"type": "function", "function": function}]


def _before_end_of_turn(chat: Chat, text: str) -> str:
    """The part of a text before the token that ends the assistant's turn."""
    ends = [chat.decode([i], control_tokens=True) for i in chat.stop_ids]
    return text[: min((at for at in map(text.find, ends) if at >= 0), default=len(text))]


def _encode(chat: Chat, text: str) -> list[int]:
    return list(chat.tokenizer.encode(text, add_special_tokens=False).ids)


def _literals(chat: Chat, text: str) -> list[str]:
    """A text as parts of a Lark rule; an added token must be named by its id there."""
    added = chat.tokenizer.get_added_tokens_decoder()
    parts: list[str] = []
    plain: list[int] = []
    for token in [*_encode(chat, text), None]:
        if token is None or token in added:
            if plain:
                parts.append(json.dumps(chat.decode(plain)))
            parts += [] if token is None else [f"<[{token}]>"]
            plain = []
        else:
            plain.append(token)
    return parts
