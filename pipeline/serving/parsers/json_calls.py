"""Calls as JSON objects with a name and arguments: Hermes, Qwen, Llama 3, Mistral, Granite."""

import json
from collections.abc import Generator
from dataclasses import dataclass

from pipeline.serving.parsers.events import Event, Parser, Parsing, Source, Text
from pipeline.serving.parsers.json_scanner import as_arguments

ARGUMENTS = ("arguments", "parameters")


@dataclass(frozen=True)
class JsonCalls:
    """A call is `opening`, JSON with `name` and `arguments_key`, then `closing`.

    listed: whether the JSON is a list of calls.
    """

    opening: str
    closing: str
    arguments_key: str = "arguments"
    listed: bool = False


def json_calls(form: JsonCalls) -> Parser:
    """A parser of calls in this form. Without an opening, a call can only begin the answer."""
    opening, closing = form.opening.strip(), form.closing.strip()
    keys = tuple(dict.fromkeys((form.arguments_key, *ARGUMENTS)))

    def parse(source: Source) -> Parsing:
        while True:
            if opening:
                if not (yield from source.text_until(opening)):
                    return
            elif source.calls or not (yield from source.starts("{", "[")):
                yield from source.rest()
                return
            calls = source.calls
            left = yield from source.attempt(_calls(source, keys))
            if left is None:
                if closing:
                    yield from source.skip(closing)
                yield from source.skip_space()
            elif text := (opening if source.calls == calls else "") + left:
                yield Text(text)
            if left is not None and not opening:
                yield from source.rest()
                return

    return parse


def _calls(source: Source, keys: tuple[str, ...]) -> Generator[Event | None, None, str | None]:
    """One call, or a list of them. Returns None if it is complete, else the text that is none."""
    begun = yield from source.starts("{", "[")
    if not begun:
        return ""
    space = source.take(len(source.text) - len(source.text.lstrip()))
    if begun == "{":
        return (yield from _call(source, keys, space))
    seen, calls = space + source.take(1), source.calls
    while True:
        if not (yield from source.starts("{")):
            if (yield from source.skip("]")) and source.calls > calls:
                return None
            return "" if source.calls > calls else seen
        source.text = source.text.lstrip()
        left = yield from _call(source, keys)
        if left is not None:
            return left if source.calls > calls else seen + left
        yield from source.skip(",")


def _call(
    source: Source, keys: tuple[str, ...], space: str = ""
) -> Generator[Event | None, None, str | None]:
    """One object. Returns None if it is a complete call, else the text that is none.

    space: what came before it.
    """
    seen = space + source.take(1)
    name: str | None = None
    early: str | None = None  # arguments that come before the name
    called = False
    while True:
        if (yield from source.skip("}")):
            if called:
                return None
            arguments = as_arguments(early or "")
            if name is None or arguments is None:
                return f"{seen}}}"
            yield from source.call(name, arguments)
            return None
        key, valid = yield from source.value()
        seen += key
        if not valid or not (yield from source.skip(":")):
            return "" if called else seen
        seen += ":"
        field = _text(key) or ""
        if field in keys and name is not None and not called:
            called = True
            if (left := (yield from source.arguments(name))) is not None:
                return left
        else:
            value, valid = yield from source.value()
            seen += value
            if not valid:
                return "" if called else seen
            if field == "name":
                name = _text(value)
            elif field in keys:
                early = value
        if (yield from source.skip(",")):
            seen += ","


def _text(value: str) -> str | None:
    found = json.loads(value)
    return found if isinstance(found, str) else None
