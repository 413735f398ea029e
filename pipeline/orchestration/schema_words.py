"""Types and bounds of JSON schema in words: of --help, and of docs/settings.md."""

from collections.abc import Mapping
from typing import Any

Schema = Mapping[str, Any]

_KINDS = {"integer": "integer", "number": "number", "boolean": "true or false", "null": "null"}
_PLURALS = {"integer": "integers", "number": "numbers", "text": "texts", "path": "paths"}
# No line is broken between a sign and its number.
_BOUNDS = (
    ("minimum", "≥\N{NO-BREAK SPACE}{}"),
    ("exclusiveMinimum", ">\N{NO-BREAK SPACE}{}"),
    ("maximum", "≤\N{NO-BREAK SPACE}{}"),
    ("exclusiveMaximum", "<\N{NO-BREAK SPACE}{}"),
    ("minItems", "at least {} entry"),
    ("form", "{}"),  # pipeline/config/section.py
)


def type_in_words(schema: Schema, *, quote: str = "") -> str:
    """A type, such as "integer or null". quote: around the names of a choice."""
    if "anyOf" in schema:
        return " or ".join(type_in_words(member, quote=quote) for member in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        names = schema.get("enum", [schema.get("const")])
        return " or ".join(f"{quote}{name}{quote}" for name in names)
    kind = schema.get("type")
    if kind == "array":
        return f"list of {_plural(type_in_words(schema['items'], quote=quote))}"
    if kind == "object":
        values = schema.get("additionalProperties")
        if isinstance(values, dict) and values:
            return f"mapping to {_plural(type_in_words(values, quote=quote))}"
        return "mapping"
    if kind == "string":
        return "path" if schema.get("format") == "path" else "text"
    return _KINDS[kind] if kind else "any value"


def bounds_in_words(schema: Schema) -> str:
    """Bounds, such as "≥ 1, ≤ 5", with those of a list's entries and a mapping's values."""
    found = [form.format(_number(schema[key])) for key, form in _BOUNDS if key in schema]
    if schema.get("minLength"):
        found.append("not empty")
    for member in schema.get("anyOf", []):
        found.append(bounds_in_words(member))
    for inner in ("items", "additionalProperties"):
        if isinstance(schema.get(inner), dict) and (each := bounds_in_words(schema[inner])):
            found.append(f"each {each}")
    return ", ".join(filter(None, found))


def _plural(name: str) -> str:
    return _PLURALS.get(name, name)


def _number(value: Any) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,g}" if isinstance(value, float) else str(value)
