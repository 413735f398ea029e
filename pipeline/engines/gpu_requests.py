"""What vLLM and TensorRT-LLM have in common: arguments of a request, and tokens of an answer."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.engines.base import Guide, Token

# Both libraries' names for the kinds of guides.
GUIDES = {"json_schema": "json", "regex": "regex", "lark": "grammar"}


def guide_arguments(guide: Guide) -> dict[str, Any]:
    """The argument of vLLM's StructuredOutputsParams or TensorRT-LLM's GuidedDecodingParams."""
    if guide.kind == "json_object":
        return {"json_object": True}
    return {GUIDES[guide.kind]: guide.text}


def adapter_of(adapters: Mapping[str, Any], name: str | None) -> Any:
    """The runtime's own request for a LoRA adapter; None for the model itself.

    Raises:
        ValueError: the adapter was removed in the meantime.
    """
    if name is not None and name not in adapters:
        raise ValueError(f"the adapter {name!r} is no longer loaded")
    return None if name is None else adapters[name]


def tokens_of(
    ids: Sequence[int], logprobs: Sequence[Mapping[int, Any] | None] | None, tops: int
) -> list[Token]:
    """Tokens with their log-probabilities, if given, and those of the `tops` most likely tokens.

    logprobs: for each token, a mapping from id to log-probability and rank that includes the token
        itself; None for the first token of a prompt.
    """
    if not logprobs:
        return [Token(token) for token in ids]
    found = []
    for token, here in zip(ids, logprobs, strict=False):  # an aborted answer repeats tokens
        if here is None:
            found.append(Token(token))
            continue
        likeliest = sorted((entry.rank or 0, i, entry.logprob) for i, entry in here.items())
        top = tuple((i, logprob) for rank, i, logprob in likeliest if rank <= tops)[:tops]
        found.append(Token(token, here[token].logprob, top, here[token].rank))
    return found
