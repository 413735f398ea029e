"""OpenAI's responses as plain dicts.

The types of the openai package take seconds to import; tests compare these dicts with them.
"""

import json
from typing import Any, Literal

from starlette.responses import JSONResponse

Kind = Literal["chat", "text"]
_OBJECTS = {"chat": "chat.completion", "text": "text_completion"}
_CHUNKS = {"chat": "chat.completion.chunk", "text": "text_completion"}


class Json(JSONResponse):
    """JSON in ASCII: text from clients and models may have half a surrogate pair, which UTF-8
    cannot encode.
    """

    def render(self, content: Any) -> bytes:
        return json.dumps(content, separators=(",", ":")).encode()


def usage(
    prompt_tokens: int,
    completion_tokens: int,
    cached_tokens: int | None = None,
    drafts: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """The usage of a request.

    cached_tokens: of the prompt, those that were not read again; None if that is unknown.
    drafts: tokens that the engine drafted, and those of them that were right; None without drafts.
    """
    counts: dict[str, Any] = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
    if cached_tokens is not None:
        counts["prompt_tokens_details"] = {"cached_tokens": cached_tokens}
    if drafts is not None:
        counts["completion_tokens_details"] = {
            "accepted_prediction_tokens": drafts[1],
            "rejected_prediction_tokens": drafts[0] - drafts[1],
        }
    return counts


def model_card(
    model: str, created: int, max_seq_len: int, *, parent: str | None = None
) -> dict[str, Any]:
    """`parent`: the model that an adapter belongs to."""
    return {
        "id": model,
        "object": "model",
        "created": created,
        "owned_by": "pipeline",
        "parent": parent,
        "max_model_len": max_seq_len,
    }


def response(
    kind: Kind, head: dict[str, Any], choices: list[dict[str, Any]], counts: dict[str, Any]
) -> dict[str, Any]:
    """A complete response. `head`: id, created, model."""
    return {**head, "object": _OBJECTS[kind], "choices": choices, "usage": counts}


def chunk(kind: Kind, head: dict[str, Any], choices: list[dict[str, Any]]) -> dict[str, Any]:
    """One chunk of a streamed response."""
    return {**head, "object": _CHUNKS[kind], "choices": choices}


def embeddings(model: str, vectors: list[Any], tokens: int) -> dict[str, Any]:
    """`vectors`: lists of numbers, or base64 strings of float32 values."""
    data = [
        {"object": "embedding", "index": index, "embedding": vector}
        for index, vector in enumerate(vectors)
    ]
    counts = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": model, "usage": counts}
