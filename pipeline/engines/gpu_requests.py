"""What requests to vLLM and to TensorRT-LLM, and the tokens that come back, have in common."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.engines.base import Guide, Token

# How both call what an answer must match.
GUIDES = {"json_schema": "json", "regex": "regex", "lark": "grammar"}


def guide_arguments(guide: Guide) -> dict[str, Any]:
    """The argument of vLLM's StructuredOutputsParams or TensorRT-LLM's GuidedDecodingParams."""
    if guide.kind == "json_object":
        return {"json_object": True}
    return {GUIDES[guide.kind]: guide.text}


def adapter_of(adapters: Mapping[str, Any], name: str | None) -> Any:
    """The runtime's own request for a LoRA adapter; None for the model itself.

    Raises:
        ValueError: it was removed meanwhile.
    """
    if name is not None and name not in adapters:
        raise ValueError(f"no adapter {name!r} is loaded any more")
    return None if name is None else adapters[name]


def tokens_of(
    ids: Sequence[int], logprobs: Sequence[Mapping[int, Any] | None] | None, tops: int
) -> list[Token]:
    """Tokens with their log-probabilities, where there are some, and those of the `tops` likeliest.

    logprobs: a mapping for each token, of id to log-probability and rank, the token itself among
        them; None for a prompt's first, before which there is nothing.
    """
    if not logprobs:
        return [Token(token) for token in ids]
    found = []
    for token, here in zip(ids, logprobs, strict=False):  # an aborted answer repeats them
        if here is None:
            found.append(Token(token))
            continue
        likeliest = sorted((entry.rank or 0, i, entry.logprob) for i, entry in here.items())
        top = tuple((i, logprob) for rank, i, logprob in likeliest if rank <= tops)[:tops]
        found.append(Token(token, here[token].logprob, top))
    return found
