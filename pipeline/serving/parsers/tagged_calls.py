"""Calls whose arguments are tags, one for each: Qwen3-Coder and GLM."""

import json
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.serving.parsers.events import Arguments, Event, Parser, Parsing, Source, Text
from pipeline.serving.parsers.json_scanner import as_arguments


@dataclass(frozen=True)
class TaggedCalls:
    """A call is `opening`, `name` and the name, arguments, `end` and `closing`; an argument is
    `key`, its name, `key_end`, its value and `value_end`.
    """

    opening: str
    name: str
    name_end: str
    key: str
    key_end: str
    value_end: str
    end: str
    closing: str


QWEN3_CODER = TaggedCalls(
    opening="<tool_call>",
    name="<function=",
    name_end=">",
    key="<parameter=",
    key_end=">",
    value_end="</parameter>",
    end="</function>",
    closing="</tool_call>",
)
GLM = TaggedCalls(
    opening="<tool_call>",
    name="",
    name_end="\n",
    key="<arg_key>",
    key_end="</arg_key>",
    value_end="</arg_value>",
    end="",
    closing="</tool_call>",
)
VALUE = "<arg_value>"  # of GLM, before a value


def tagged_calls(form: TaggedCalls) -> Parser:
    """A parser of calls in this form. A value is text unless the tool's schema says otherwise."""

    def parse(source: Source) -> Parsing:
        while True:
            # Qwen3-Coder sometimes leaves out what surrounds the call.
            marks = (form.opening, form.name) if form.name else (form.opening,)
            found = yield from source.text_until(*marks)
            if not found:
                return
            calls = source.calls
            left = yield from source.attempt(_call(source, form, found == form.name))
            if left is None:
                yield from source.skip_space()
            elif text := (found if source.calls == calls else "") + left:
                yield Text(text)

    return parse


def _call(
    source: Source, form: TaggedCalls, named: bool
) -> Generator[Event | None, None, str | None]:
    if form.name and not named and not (yield from source.skip(form.name)):
        return ""
    ends = (form.name_end, form.key, form.closing) if form.name_end == "\n" else (form.name_end,)
    name, mark = yield from source.take_until(*ends)
    if not mark:
        return name
    if mark != form.name_end:
        source.text = mark + source.text
    name = name.strip()
    yield from source.call(name)
    types = source.tools.get(name, {}).get("properties")
    separator = "{"
    while (yield from source.skip(form.key)):
        key, mark = yield from source.take_until(form.key_end)
        if not mark:
            return ""
        key = key.strip()
        yield Arguments(f"{separator}{json.dumps(key, ensure_ascii=False)}: ")
        separator = ", "
        schema = types.get(key) if isinstance(types, Mapping) else None
        if not (yield from _value(source, form, schema)):
            return ""
    yield Arguments("}" if separator == ", " else "{}")
    if form.end and not (yield from source.skip(form.end)):
        return ""
    yield from source.skip(form.closing)
    return None


def _value(source: Source, form: TaggedCalls, schema: Any) -> Generator[Event | None, None, bool]:
    """Send a value. Whether it is complete."""
    if form is GLM:
        yield from source.skip(VALUE)
    elif (yield from source.starts(form.value_end)) != form.value_end:
        source.text = source.text.removeprefix("\n")
    ends = (f"\n{form.value_end}", form.value_end)
    if _is_text(schema):
        yield Arguments('"')
        mark = yield from source.text_until(*ends, event=_escaped, trims=False)
        yield Arguments('"')
        return bool(mark)
    text, mark = yield from source.take_until(*ends)
    yield Arguments(_typed(text, schema))
    return bool(mark)


def _escaped(text: str) -> Arguments:
    return Arguments(json.dumps(text, ensure_ascii=False)[1:-1])


def _is_text(schema: Any) -> bool:
    kind = schema.get("type") if isinstance(schema, Mapping) else None
    return kind == "string" or (kind is None and not isinstance(schema, Mapping))


def _typed(text: str, schema: Any) -> str:
    """A value in JSON: as it is written, if it is JSON, else as a text."""
    stripped = text.strip()
    kind = schema.get("type")
    if kind == "boolean" and stripped.lower() in ("true", "false"):
        return stripped.lower()
    if as_arguments(f'{{"v": {stripped}}}') is not None:
        return stripped
    return json.dumps(text, ensure_ascii=False)
