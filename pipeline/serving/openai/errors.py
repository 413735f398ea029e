"""Errors in OpenAI's format, and what is wrong with a request in plain words."""

import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

MAX_MESSAGE = 1000  # characters
MAX_SHOWN = 200  # characters of a client's value in a message


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(BaseModel):
    """The body of every error response; see error_body."""

    error: ErrorDetail


def error_body(
    message: str,
    kind: str = "invalid_request_error",
    *,
    param: str | None = None,
    code: str | None = None,
) -> dict[str, Any]:
    """Messages and names that quote a client's megabytes are cut."""
    param = param if param is None else shortened(param)
    return {
        "error": {
            "message": shortened(message, MAX_MESSAGE),
            "type": kind,
            "param": param,
            "code": code,
        }
    }


def shortened(text: str, most: int = MAX_SHOWN) -> str:
    return text if len(text) <= most else f"{text[:most]}…"


class ApiError(Exception):
    """An error response in OpenAI's format."""

    def __init__(self, status: int, message: str, **fields: Any) -> None:
        super().__init__(message)
        self.status = status
        self.body = error_body(message, **fields)


def invalid(param: str, message: str, code: str = "invalid_value") -> ApiError:
    """An error about one field's value."""
    return ApiError(400, message, param=param, code=code)


# pydantic's types of errors, and what is wrong in our words. {…} are values of its context.
WORDS: Mapping[str, str] = {
    "missing": "is missing",
    "string_type": "must be a text",
    "string_too_long": "has more than {max_length} characters",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "list_type": "must be a list",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "greater_than": "must be greater than {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than": "must be less than {lt:g}",
    "less_than_equal": "must be at most {le:g}",
    "too_short": "must have at least {min_length} items",
    "too_long": "must have at most {max_length} items",
    "literal_error": "must be one of {expected}",
    "enum": "must be one of {expected}",
    "string_pattern_mismatch": "has characters that are not allowed, or too many",
    "union_tag_invalid": "must have a type that is one of {expected_tags}",
    "union_tag_not_found": "must have a type",
    "string_unicode": "must be valid Unicode",
}
# Names in a location that are of pydantic's types and not of fields.
_INNER = re.compile(r"[\[(]|^(str|int|float|bool|dict|list|literal|none|nullable|[A-Z]\w*)$")


def explain(errors: list[Any]) -> dict[str, Any]:
    """The error body for a request that is not valid, from pydantic's list of errors."""
    first = errors[0]
    # The location is "body", the field, and then branches of a union and fields inside.
    place = [str(part) for part in first["loc"][1:]]
    param = place[0] if place and isinstance(first["loc"][1], str) else None
    if first["type"] == "json_invalid":
        return error_body("the body is not valid JSON: send a JSON object")
    if first["type"] == "extra_forbidden":
        param = ".".join(place)
        return error_body(
            f"Unrecognized request argument supplied: {shortened(param)}",
            param=param,
            code="unknown_parameter",
        )
    if param is None:
        return error_body("the body must be a JSON object, sent as Content-Type: application/json")
    if first["type"] == "missing" and len(place) == 1:
        return error_body(
            f"Missing required parameter: '{param}'", param=param, code="missing_required_parameter"
        )
    code = "unsupported_parameter" if first["type"] == "unsupported" else "invalid_value"
    inner = [part for part in place[1:] if not _INNER.search(part)]
    at = f" (at {shortened('.'.join(inner))})" if inner else ""
    return error_body(f"Invalid '{param}': {_words(errors, param)}{at}", param=param, code=code)


def refused(error: ValidationError, names: Mapping[str, str] | None = None) -> ApiError:
    """The refusal of a request that was translated from another API.

    names: the fields of the other API, by those that they were translated to.
    """
    found = ApiError(400, "")
    found.body = explain([{**e, "loc": ("body", *e["loc"])} for e in error.errors()])
    return renamed(found, names or {})


def renamed(error: ApiError, names: Mapping[str, str]) -> ApiError:
    """The error, with the fields of the other API."""
    detail = error.body["error"]
    name = str(detail["param"])
    if name in names:
        detail["param"] = names[name]
        detail["message"] = re.sub(rf"\b{name}\b", names[name], detail["message"])
    return error


def _words(errors: list[Any], param: str) -> str:
    """What is wrong with one field; for a union, the kinds that it takes."""
    kinds = [error["type"] for error in errors if error["loc"][1] == param]
    wanted = [WORDS[kind].removeprefix("must be ") for kind in kinds if kind.endswith("_type")]
    if len(wanted) > 1 and len(wanted) == len(kinds):
        return "must be " + " or ".join(dict.fromkeys(wanted))
    first = errors[0]
    if first["type"] in WORDS:
        return WORDS[first["type"]].format_map(first.get("ctx") or {})
    # Messages of our own validators are plain already.
    return first["msg"] if first["type"] in OURS else "has a value that is not allowed"


OURS = frozenset({"unsupported", "too_many", "prompts", "stops"})
