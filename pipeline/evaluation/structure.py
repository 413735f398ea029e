"""Scores of an answer's form: JSON, JSON schemas, tool calls, patterns, refusals.

Each is 0 or 1, or NaN where it does not apply.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipeline.core.errors import DataError

_DECODER = json.JSONDecoder()
_OPENS = re.compile(r"[{\[]")
# How a refusal begins, in English. Models of other languages need evaluate.refusal_pattern.
REFUSAL = (
    r"(?:i['’]?m (?:very |so )?sorry|sorry|i apologi[sz]e|unfortunately|as an ai\b|"
    r"i (?:cannot|can['’]?t|can not|am not able|am unable|won['’]?t|will not|must decline)|"
    r"i['’]m (?:not able|unable)\b|it (?:is|would be) (?:not appropriate|inappropriate))"
)


def parsed(text: str) -> Any:
    """The JSON value of a text, which may stand in a fence of Markdown; None if it is none.

    null is none, too: nobody asks for it.
    """
    fenced = re.fullmatch(r"\s*```(?:json)?\s*\n(.*?)\n?\s*```\s*", text, re.DOTALL)
    try:
        return json.loads(fenced[1] if fenced else text)
    except (ValueError, RecursionError):
        return None


def json_valid(answer: str, expected: str) -> float:
    """Whether an answer is JSON; NaN where the expected one is no object or list."""
    if not isinstance(parsed(expected), dict | list):
        return math.nan
    return float(isinstance(parsed(answer), dict | list))


def json_schema_check(file: Path) -> Callable[[str], bool]:
    """A check of answers against a JSON schema. It fetches nothing.

    Raises:
        DataError: the file is missing, or holds no JSON schema.
    """
    from jsonschema import exceptions, validators
    from referencing import Registry

    try:
        schema = json.loads(file.read_text(encoding="utf-8"))
        kind = validators.validator_for(schema)
        kind.check_schema(schema)
    except (OSError, ValueError, TypeError, RecursionError, exceptions.SchemaError) as error:
        why = getattr(error, "message", None) or str(error)
        raise DataError(f"evaluate.json_schema={file} is no JSON schema: {why}") from error
    validator = kind(schema, registry=Registry())

    def check(answer: str) -> bool:
        value = parsed(answer)
        return value is not None and validator.is_valid(value)

    return check


def tool_calls(answer: str, expected: str) -> float:
    """Whether an answer makes the expected tool calls, in any order and form of writing; NaN if
    none are expected."""
    calls = calls_in(expected)
    if not calls:
        return math.nan
    return float(sorted(map(_canonical, calls)) == sorted(map(_canonical, calls_in(answer))))


def calls_in(text: str) -> list[tuple[str, Any]]:
    """Name and arguments of every call that a text holds as JSON, whatever stands around it."""
    found: list[tuple[str, Any]] = []
    at = 0
    while begin := _OPENS.search(text, at):
        try:
            value, at = _DECODER.raw_decode(text, begin.start())
        except (ValueError, RecursionError):
            at = begin.end()
            continue
        for entry in value if isinstance(value, list) else [value]:
            if call := _call(entry):
                found.append(call)
    return found


def _call(entry: Any) -> tuple[str, Any] | None:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str):
        return None
    arguments = entry.get("arguments", entry.get("parameters"))
    if arguments is None:
        return None
    return entry["name"], parsed(arguments) if isinstance(arguments, str) else arguments


def _canonical(call: tuple[str, Any]) -> str:
    return json.dumps(call, sort_keys=True, ensure_ascii=False)
