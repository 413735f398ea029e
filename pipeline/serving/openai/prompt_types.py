"""Checks of fields that the APIs share: counted before their items are validated, or refused."""

from collections.abc import Container, Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationInfo
from pydantic_core import PydanticCustomError

MAX_PROMPTS = 2048  # OpenAI's limit for embeddings
MAX_TOKEN_ID = 2**31
NO_PROMPTS = "give text, token ids or a list of either; no list may be empty"
# The first wrong item is enough: 100,000 errors would hold the event loop.
Texts = Annotated[list[str], Field(fail_fast=True)]


def at_most(limit: int, what: str) -> BeforeValidator:
    """Refuses a list or an object with more items, or a text with more characters."""

    def check(value: Any) -> Any:
        if isinstance(value, list | dict | str) and len(value) > limit:
            raise PydanticCustomError(
                "too_many",
                "at most {limit} {what} are allowed, and it has {count}",
                {"count": len(value), "what": what, "limit": limit},
            )
        return value

    return BeforeValidator(check)


def require_neutral(neutral: Mapping[str, Container[Any]], value: Any, info: ValidationInfo) -> Any:
    """A value of a field that this server does not support, if it asks for nothing.

    neutral: the values without effect, by field; null is one of every field.
    """
    assert info.field_name
    if value is not None and value not in neutral[info.field_name]:
        raise PydanticCustomError(
            "unsupported",
            "this server does not support {name}: leave it out",
            {"name": info.field_name},
        )
    return value


def _prompts(value: Any, info: ValidationInfo) -> Any:
    """Text, token ids, or a list of either. Token ids are checked later, against their limit."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value:
        kind = type(value[0])
        if kind is int:
            return value
        if len(value) > MAX_PROMPTS:
            raise PydanticCustomError(
                "too_many",
                "at most {limit} texts are allowed in one request",
                {"limit": MAX_PROMPTS},
            )
        if kind is str and all(type(text) is str for text in value):
            return value
        if kind is list and all(type(ids) is list and ids for ids in value):
            return value
    raise PydanticCustomError("prompts", NO_PROMPTS)


def are_token_ids(values: list[Any]) -> bool:
    """Whether they are whole numbers that a token id can be."""
    return all(type(value) is int and -MAX_TOKEN_ID < value < MAX_TOKEN_ID for value in values)


Prompts = Annotated[str | list[Any], BeforeValidator(_prompts)]
