"""The fields that ask for an answer of a certain form, as a guide for the engine."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from pipeline.engines.base import Guide
from pipeline.engines.batching.guided_decoding import OPTIONS_KEY, with_options
from pipeline.models.chat.renderer import Chat
from pipeline.serving.guides.checker import MOST_BYTES
from pipeline.serving.guides.grammars import Part, TextUntil, tags_guide
from pipeline.serving.openai.bodies import size_of
from pipeline.serving.openai.errors import ApiError, invalid
from pipeline.serving.openai.protocol import ChatRequest, CompletionRequest
from pipeline.serving.openai.response_formats import (
    JsonFormat,
    SchemaFormat,
    StructuredOutputs,
    TagFormat,
)

GUIDED = ("guided_json", "guided_regex", "guided_choice", "guided_grammar")
KINDS = ("value", "json_object", "regex", "choice", "grammar", "structural_tag")


def guide_of(
    body: ChatRequest | CompletionRequest, chat: Chat, json_whitespace: int
) -> tuple[str | None, Guide | None]:
    """The field that asks for a form, and the guide; None for both if no field does.

    Raises:
        ApiError: several fields ask for one, or its value is not valid.
    """
    asked: dict[str, Any] = {}
    for name in GUIDED:
        if (value := body.get(name)) is not None:
            asked[name] = name.removeprefix("guided_"), value
    form = body.response_format
    if isinstance(form, JsonFormat):
        asked["response_format"] = "json", {"type": "object"}
    elif isinstance(form, SchemaFormat):
        asked["response_format"] = "json", form.json_schema.value
    elif isinstance(form, TagFormat):
        asked["response_format"] = "tags", form
    whitespace: Mapping[str, Any] | None = None
    if body.structured_outputs is not None:
        kind, value, whitespace = _structured(body.structured_outputs)
        asked["structured_outputs"] = kind, value
    if len(asked) > 1:
        raise invalid(list(asked)[1], f"only one of {', '.join(asked)} can be used")
    for field, (kind, value) in asked.items():
        if kind == "tags":
            return field, _tags(field, value, chat, json_whitespace)
        require_short(field, value)
        return field, _guide(field, kind, value, json_whitespace, whitespace)
    return None, None


def _structured(given: StructuredOutputs) -> tuple[str, Any, Mapping[str, Any] | None]:
    """The kind and the value of vLLM's field, and what its JSON may have as white space."""
    field = "structured_outputs"
    named = {name: getattr(given, name) for name in KINDS}
    asked = {n: v for n, v in named.items() if v is not None and (n != "json_object" or v)}
    if len(asked) != 1:
        names = "json, json_object, regex, choice, grammar and structural_tag"
        raise invalid(field, f"give exactly one of {names}")
    ((name, value),) = asked.items()
    whitespace: Mapping[str, Any] | None = None
    if given.disable_any_whitespace:
        whitespace = {"whitespace_flexible": False}
    if given.whitespace_pattern is not None:
        if given.disable_any_whitespace:
            raise invalid(field, "whitespace_pattern contradicts disable_any_whitespace")
        whitespace = {"whitespace_pattern": given.whitespace_pattern}
    if name == "structural_tag":
        try:
            return "tags", TagFormat.model_validate(json.loads(value)), None
        except (ValueError, RecursionError, ValidationError):
            text = "structural_tag must be JSON with structures and triggers, or with a format"
            raise invalid(field, text) from None
    kind = {"value": "json", "json_object": "json"}.get(name, name)
    value = {"type": "object"} if name == "json_object" else value
    if given.disable_additional_properties and kind == "json":
        value = _closed(_schema(field, value))
    return kind, value, whitespace


def _closed(schema: dict[str, Any]) -> dict[str, Any]:
    return {"additionalProperties": False, **schema}


def _guide(
    field: str,
    kind: str,
    value: Any,
    json_whitespace: int,
    whitespace: Mapping[str, Any] | None,
) -> Guide:
    if kind == "regex":
        return Guide("regex", value)
    if kind == "grammar":
        return Guide("grammar", value)
    if kind == "choice":
        return Guide("lark", "start: " + " | ".join(json.dumps(choice) for choice in value))
    schema = with_options(_schema(field, value), json_whitespace)
    if whitespace is not None:
        schema[OPTIONS_KEY] = whitespace
    try:
        return Guide("json_schema", json.dumps(schema))
    except RecursionError:
        raise _too_deep(field) from None


def _schema(field: str, value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise invalid(field, "this is not a JSON schema: send a JSON object") from None
    if not isinstance(value, dict):
        raise invalid(field, "a JSON schema must be a JSON object")
    return value


def _tags(field: str, form: TagFormat, chat: Chat, json_whitespace: int) -> Guide:
    """A guide to text with tags.

    Raises:
        ApiError: it has neither form, or a tag begins with no trigger.
    """
    if (form.format is None) == (form.structures is None):
        raise invalid(field, "a structural_tag needs structures and triggers, or a format")
    triggers: Sequence[str] = form.triggers or ()
    if form.format:
        triggers = form.format.triggers
        tags = [(t.begin, _content(field, t.content), t.end) for t in form.format.tags]
    else:
        tags = [(t.begin, t.value, t.end) for t in form.structures or ()]
    require_short(field, [[begin, content, end] for begin, content, end in tags])
    found: list[tuple[str, list[Part]]] = []
    for begin, content, end in tags:
        trigger = next((t for t in triggers if t and begin.startswith(t)), None)
        if trigger is None:
            raise invalid(field, f"no trigger begins the tag {begin[:40]!r}")
        rest: list[Part] = [content, end] if content is not None else [TextUntil(end)]
        found.append((trigger, [begin[len(trigger) :], *rest]))
    try:
        return tags_guide(chat, found, json_whitespace)
    except RecursionError:
        raise _too_deep(field) from None


def _content(field: str, content: Any) -> dict[str, Any] | None:
    if content.type == "any_text":
        return None
    if not isinstance(content.json_schema, dict):
        raise invalid(field, "the content of a tag needs a json_schema")
    return content.json_schema


def _too_deep(field: str) -> ApiError:
    return invalid(field, "the schema is nested too deeply")


def require_short(field: str, value: Any) -> None:
    """
    Raises:
        ApiError: what an answer must match is larger than a guide may be.
    """
    if size_of(value, MOST_BYTES) > MOST_BYTES:
        raise invalid(field, f"it has more than {MOST_BYTES} characters and values: send less")
