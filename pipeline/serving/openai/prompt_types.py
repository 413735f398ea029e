"""The types of a prompt: text or token ids, or a list of either."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

MAX_PROMPTS = 2048  # OpenAI's limit for embeddings


def _not_too_many(value: Any) -> Any:
    """Refuse a long list before its items are validated: a million take over a second."""
    if isinstance(value, list) and len(value) > MAX_PROMPTS and not isinstance(value[0], int):
        raise PydanticCustomError(
            "too_many", "at most {limit} texts are allowed in one request", {"limit": MAX_PROMPTS}
        )
    return value


TokenIds = Annotated[list[int], Field(min_length=1)]
Texts = Annotated[list[str], Field(min_length=1)]
TokenIdLists = Annotated[list[TokenIds], Field(min_length=1)]
Prompts = Annotated[str | TokenIds | Texts | TokenIdLists, BeforeValidator(_not_too_many)]
