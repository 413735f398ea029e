"""Requests to another server with OpenAI's API, and what its errors mean."""

from collections.abc import Sequence
from typing import Any

from pipeline.client.addresses import message
from pipeline.engines.base import EngineFailed, QueueFull, Sampling

BEHIND = "the server behind this one"  # for clients: only the log has its address
# Fields beyond OpenAI's that servers accept or refuse together, with values that change nothing.
KNOWN_TOGETHER: tuple[dict[str, Any], ...] = (
    {"return_token_ids": True, "stop_token_ids": []},
    {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0},
    {"ignore_eos": False},
)
SAMPLING_FIELDS = frozenset(KNOWN_TOGETHER[1])
BUSY = (429, 503)


def request_body(
    model: str, prompt: Sequence[int], sampling: Sampling, known: frozenset[str]
) -> dict[str, Any]:
    """A request to /completions. known: fields beyond OpenAI's that the server accepts.

    Raises:
        ValueError: the server does not support the request.
    """
    body: dict[str, Any] = {
        "model": model,
        "prompt": list(prompt),
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "stream": True,
    }
    if "stop_token_ids" in known:
        body |= {"stop_token_ids": sorted(sampling.stop_ids), "return_token_ids": True}
    wishes: dict[str, tuple[Any, Any]] = {
        "seed": (sampling.seed, None),
        "frequency_penalty": (sampling.frequency_penalty, 0),
        "presence_penalty": (sampling.presence_penalty, 0),
        "logit_bias": ({str(i): bias for i, bias in sampling.logit_bias.items()}, {}),
        "top_k": (sampling.top_k, 0),
        "min_p": (sampling.min_p, 0),
        "repetition_penalty": (sampling.repetition_penalty, 1),
        # Without stop tokens in the request the server would still use the model's own.
        "ignore_eos": (not sampling.stop_ids, False),
    }
    for name, (value, neutral) in wishes.items():
        if value == neutral:
            continue
        if any(name in fields for fields in KNOWN_TOGETHER) and name not in known:
            raise ValueError(f"{name}: {BEHIND} does not support it")
        body[name] = value
    return body


def refusal(status: int, text: str) -> Exception:
    """The error for a status other than 200: the client's mistake, a full queue, or a failure."""
    if status in (400, 404, 413, 422):
        return ValueError(message(text))
    if status in BUSY:
        return QueueFull(f"{BEHIND} answers {status}: {message(text)}")
    return EngineFailed(f"{BEHIND} answers {status}: {message(text)}")
