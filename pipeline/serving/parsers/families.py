"""The table of families of tool calls: how each is recognized, parsed and forced.

A family is found by rendering a call with the model's own chat template, or named in
serve.tool_parser.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.engines.base import Guide
from pipeline.engines.batching.guided_decoding import OPTIONS_KEY
from pipeline.models.chat.renderer import Chat
from pipeline.serving.guides.grammars import (
    OneOf,
    Optional,
    Part,
    TextUntil,
    call_guide,
    first_or_text_guide,
    tags_guide,
)
from pipeline.serving.parsers.events import Parser
from pipeline.serving.parsers.harmony import harmony
from pipeline.serving.parsers.json_calls import JsonCalls, json_calls
from pipeline.serving.parsers.named_calls import (
    DEEPSEEK_V3,
    DEEPSEEK_V31,
    KIMI,
    MISTRAL,
    NamedCalls,
    named_calls,
)
from pipeline.serving.parsers.pythonic_calls import pythonic_calls
from pipeline.serving.parsers.tagged_calls import GLM, QWEN3_CODER, TaggedCalls, tagged_calls

PROBE = "probe_name"  # the tool of the call that is rendered
Schema = Mapping[str, Any]


@dataclass(frozen=True)
class ToolFamily:
    """
    Attributes:
        parse: the parser.
        written: whether a template wrote the call of PROBE, with the argument probe_key, in this
            form; None if the form has to be read from the JSON (detection.py).
        call: the parts of one call of a tool with this name and schema, for forcing it; None if
            that is not possible.
        opening: the text that begins a call anywhere in an answer; "" if only an answer can begin
            with one.
        mixes: whether a guide can leave it to the model if it writes text or calls.
        marks: texts that the parser looks for. Those that are control tokens must be decoded.
    """

    name: str
    parse: Parser
    written: Callable[[str], bool] | None = None
    call: Callable[[str, Schema], Sequence[Part]] | None = None
    opening: str = ""
    mixes: bool = True
    marks: tuple[str, ...] = ()


def json_family(name: str, form: JsonCalls) -> ToolFamily:
    """A family of calls as JSON objects."""

    def call(tool: str, schema: Schema) -> list[Part]:
        found: dict[str, Any] = {
            "type": "object",
            "properties": {"name": {"const": tool}, form.arguments_key: as_resource(schema, tool)},
            "required": ["name", form.arguments_key],
            "additionalProperties": False,
        }
        if form.listed:
            found = {"type": "array", "items": found, "minItems": 1, "maxItems": 1}
        return [form.opening, found, form.closing]

    return ToolFamily(
        name,
        json_calls(form),
        call=call,
        opening=form.opening,
        marks=(form.opening, form.closing),
    )


def _named_family(name: str, form: NamedCalls, written: Callable[[str], bool]) -> ToolFamily:
    opening = f"{form.section}{form.opening}"

    def call(tool: str, schema: Schema) -> list[Part]:
        ends = f"{form.closing}{form.section_end}"
        return [f"{opening}{form.before_name}{tool}{form.after_name}", {**schema}, ends]

    marks = (form.section, form.opening, form.after_name, form.closing, form.section_end)
    return ToolFamily(name, named_calls(form), written, call, opening, marks=marks)


def _tagged_family(name: str, form: TaggedCalls, written: Callable[[str], bool]) -> ToolFamily:
    def call(tool: str, schema: Schema) -> list[Part]:
        begin = f"{form.opening}\n{form.name}" if form.name else form.opening
        line = "\n" if form.name else ""
        parts: list[Part] = [f"{begin}{tool}{form.name_end}{line}"]
        properties = schema.get("properties") or {}
        required = schema.get("required") or ()
        for key, kind in properties.items():
            value = _tagged_value(form, kind, schema)
            argument = [f"{form.key}{key}{form.key_end}\n{_value_begin(form)}", *value]
            parts += argument if key in required else [Optional(argument)]
        return [*parts, f"{form.end}\n{form.closing}" if form.end else form.closing]

    marks = (form.opening, form.closing)
    return ToolFamily(name, tagged_calls(form), written, call, form.opening, marks=marks)


def _value_begin(form: TaggedCalls) -> str:
    return "<arg_value>" if form is GLM else ""


def _tagged_value(form: TaggedCalls, kind: Any, schema: Schema) -> list[Part]:
    """The parts of a value: a text as it is, or JSON."""
    end = f"\n{form.value_end}\n" if form.name else f"{form.value_end}\n"
    if isinstance(kind, Mapping) and kind.get("type") == "string":
        if isinstance(kind.get("enum"), list):
            return [OneOf([str(value) for value in kind["enum"]]), end]
        return [TextUntil(end)]
    inner = {**kind} if isinstance(kind, Mapping) else {}
    for definitions in ("$defs", "definitions"):
        if definitions in schema:
            inner[definitions] = schema[definitions]
    return [inner, end]


def _harmony_call(tool: str, schema: Schema) -> list[Part]:
    head = f"<|channel|>commentary to=functions.{tool} <|constrain|>json<|message|>"
    return [head, {**schema}]


def as_resource(schema: Schema, tool: str) -> dict[str, Any]:
    """A tool's schema for use inside another: its `$id` makes `$ref`s start at its own root.

    `$schema` is removed, because old drafts ignore an `$id` beside a `$ref`.
    """
    found = {**schema, "$id": f"urn:tool:{tool}"}
    found.pop("$schema", None)
    found.pop(OPTIONS_KEY, None)
    return found


_ALL = (
    _tagged_family("qwen3_coder", QWEN3_CODER, lambda text: f"<function={PROBE}>" in text),
    _tagged_family("glm", GLM, lambda text: "<arg_key>" in text),
    _named_family(
        *("deepseek_v3", DEEPSEEK_V3),
        lambda text: f"function<｜tool▁sep｜>{PROBE}" in text,
    ),
    _named_family(
        *("deepseek_v31", DEEPSEEK_V31),
        lambda text: f"{PROBE}<｜tool▁sep｜>" in text,
    ),
    _named_family(
        *("mistral", MISTRAL),
        lambda text: re.search(rf"\[TOOL_CALLS\]\s*{PROBE}", text) is not None,
    ),
    _named_family("kimi", KIMI, lambda text: "<|tool_call_argument_begin|>" in text),
    ToolFamily(
        "gpt_oss",
        harmony,
        lambda text: f"to=functions.{PROBE}" in text and "<|channel|>" in text,
        _harmony_call,
        mixes=False,
        marks=("<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|constrain|>"),
    ),
    ToolFamily(
        "pythonic",
        pythonic_calls,
        lambda text: re.search(rf"{PROBE}\(\s*probe_key\s*=", text) is not None,
        marks=("<|python_start|>", "<|python_end|>"),
    ),
    json_family("hermes", JsonCalls("<tool_call>\n", "\n</tool_call>")),
    json_family("llama3_json", JsonCalls("", "", "parameters")),
    json_family("granite", JsonCalls("<|tool_call|>", "", listed=True)),
    json_family("mistral_json", JsonCalls("[TOOL_CALLS] ", "", listed=True)),
)

FAMILIES: Mapping[str, ToolFamily] = {family.name: family for family in _ALL}


def tools_guide(
    chat: Chat,
    family: ToolFamily,
    tools: Sequence[Mapping[str, Any]],
    json_whitespace: int = 0,
    *,
    optional: bool = False,
    most: int | None = None,
) -> Guide:
    """A guide to exactly one call of one of these tools, with arguments of its schema.

    Args:
        family: one that has `call`.
        json_whitespace: characters of white space that its JSON may have at each gap.
        optional: whether the answer may also be text, or text with calls in it. Then only the
            arguments of strict tools have their schema. Needs `mixes`.
        most: calls in such text at most; None for any number.
    """
    assert family.call
    calls = []
    for tool in tools:
        function = tool["function"]
        bound = not optional or function.get("strict")
        schema = (function.get("parameters") if bound else None) or {"type": "object"}
        calls.append(family.call(function["name"], schema))
    if not optional:
        return call_guide(chat, calls, json_whitespace)
    if not family.opening:
        return first_or_text_guide(chat, calls, json_whitespace)
    tags = [
        (family.opening, [str(first).removeprefix(family.opening), *rest]) for first, *rest in calls
    ]
    return tags_guide(chat, tags, json_whitespace, most=most)
