"""What a model of token ids takes and gives over KServe's protocol.

The tensors are those of TensorRT-LLM's backend for Triton, so that a client of one is a client of
the other. Models of this pipeline take one more input, `sampling`, the whole of base.Sampling as
JSON, and give one more output, `details`, with log-probabilities.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any

from pipeline.engines.base import Client, Guide, Sampling, Token
from pipeline.engines.kserve.tensors import BYTES, Tensor

SAMPLING, DETAILS = "sampling", "details"
OUTPUT_IDS, LENGTHS = "output_ids", "sequence_length"
FACTS = "pipeline"  # parameter of config.pbtxt with the engine's facts
PROMPT, WITH_DETAILS = "prompt", "details"  # further keys of `sampling`
# Inputs of TensorRT-LLM's backend (1.0 to 1.2) that this client sends or our model takes: name,
# type, and the field of Sampling.
SCALARS: Mapping[str, tuple[str, str]] = {
    "request_output_len": ("INT32", "max_tokens"),
    "temperature": ("FP32", "temperature"),
    "runtime_top_k": ("INT32", "top_k"),
    "runtime_top_p": ("FP32", "top_p"),
    "seed": ("UINT64", "seed"),
    "repetition_penalty": ("FP32", "repetition_penalty"),
    "presence_penalty": ("FP32", "presence_penalty"),
    "frequency_penalty": ("FP32", "frequency_penalty"),
    "min_tokens": ("INT32", "min_tokens"),
}
_DEFAULTS = {field.name: field.default for field in fields(Sampling)}
_GREEDY = {"temperature": 1.0, "top_k": 1, "top_p": 0.0}
# What a server without `sampling` can do beyond sampling.
FEATURES = frozenset({"penalties", "min_tokens", "bad_words"})
# Fields of Sampling that it has no input for, and the names by which requests have them.
UNKNOWN = ("min_p", "logit_bias", "allowed_ids", "guide", "adapter", "logprobs", "prompt_logprobs")


@dataclass(frozen=True)
class Facts:
    """What our own model says of its engine in its configuration."""

    features: frozenset[str]
    max_input_len: int
    max_seq_len: int

    def text(self) -> str:
        """As the parameter FACTS has it."""
        content = {
            "features": sorted(self.features),
            "max_input_len": self.max_input_len,
            "max_seq_len": self.max_seq_len,
        }
        return json.dumps(content)

    @classmethod
    def read(cls, text: str) -> "Facts":
        """
        Raises:
            ValueError: it is not what `text` writes.
        """
        try:
            found = json.loads(text)
            return cls(frozenset(found["features"]), found["max_input_len"], found["max_seq_len"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"facts of another version: {error!r}") from error


def write_sampling(sampling: Sampling, **more: Any) -> str:
    """base.Sampling as JSON: what differs from its defaults. more: further keys."""
    found: dict[str, Any] = {"max_tokens": sampling.max_tokens}
    for field in fields(Sampling):
        value = getattr(sampling, field.name)
        if field.name != "max_tokens" and value != _default(field):
            found[field.name] = _plain(value)
    return json.dumps(found | more)


def read_sampling(text: str) -> tuple[Sampling, dict[str, Any]]:
    """What write_sampling wrote, and the further keys.

    Raises:
        ValueError: it is not JSON, or has a field or a value that Sampling does not have.
    """
    try:
        given = json.loads(text)
        more = {key: given.pop(key) for key in (PROMPT, WITH_DETAILS) if key in given}
        unknown = given.keys() - {field.name for field in fields(Sampling)}
        if unknown:
            raise ValueError(f"{SAMPLING} has no field {min(unknown)}")
        for name in ("stop_ids", "allowed_ids"):
            if given.get(name) is not None:
                given[name] = frozenset(given[name])
        if "logit_bias" in given:
            given["logit_bias"] = {int(i): float(b) for i, b in given["logit_bias"].items()}
        if "bad_words" in given:
            given["bad_words"] = tuple(tuple(word) for word in given["bad_words"])
        if given.get("guide"):
            given["guide"] = Guide(**given["guide"])
        if "client" in given:
            given["client"] = Client(*given["client"])
        return Sampling(**given), more
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{SAMPLING} cannot be read: {error}") from error


def write_details(tokens: Sequence[Token], prompt: Sequence[Token] | None) -> str:
    """Tokens with all that is known of them, and once those of the prompt."""
    found: dict[str, Any] = {"tokens": [list(token) for token in tokens]}
    if prompt is not None:
        found["prompt"] = [list(token) for token in prompt]
    return json.dumps(found)


def read_details(text: bytes) -> tuple[list[Token], list[Token] | None]:
    """What write_details wrote.

    Raises:
        ValueError: it is something else.
    """
    try:
        found = json.loads(text)
        prompt = found.get("prompt")
        return _tokens(found["tokens"]), None if prompt is None else _tokens(prompt)
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{DETAILS} cannot be read: {error!r}") from error


def request_tensors(
    prompt: Sequence[int], sampling: Sampling, known: frozenset[str]
) -> list[Tensor]:
    """The inputs of a request to a model of TensorRT-LLM's backend.

    known: the model's inputs.

    Raises:
        ValueError: the request wants what the model has no input for.
    """
    for name in UNKNOWN:
        if getattr(sampling, name) not in (None, 0, {}, ()):
            raise ValueError(f"{name}: the server behind this one does not support it")
    stop = sorted(sampling.stop_ids)
    found = [
        Tensor("input_ids", "INT32", (1, len(prompt)), prompt),
        Tensor("input_lengths", "INT32", (1, 1), [len(prompt)]),
        Tensor("streaming", "BOOL", (1, 1), [True]),
    ]
    if stop:
        found.append(Tensor("end_id", "INT32", (1, 1), stop[:1]))
        found.append(Tensor("pad_id", "INT32", (1, 1), stop[:1]))
    for name, words in (
        ("stop_words_list", [(token,) for token in stop[1:]]),
        ("bad_words_list", list(sampling.bad_words)),
    ):
        if words:
            found.append(word_list(name, words))
    values = {field: getattr(sampling, field) for _, field in SCALARS.values()}
    sent = {field for field, value in values.items() if value not in (None, _DEFAULTS.get(field))}
    if sampling.temperature == 0:  # not a value of its own there: the likeliest token
        values |= _GREEDY
        sent |= _GREEDY.keys()
    for name, (datatype, field) in SCALARS.items():
        if field in sent:
            found.append(Tensor(name, datatype, (1, 1), [values[field]]))
    lacking = [tensor.name for tensor in found if tensor.name not in known]
    optional = {"streaming", "pad_id"}
    if refused := [name for name in lacking if name not in optional]:
        raise ValueError(f"{refused[0]}: the server behind this one has no such input")
    return [tensor for tensor in found if tensor.name in known]


def word_list(name: str, words: Sequence[Sequence[int]]) -> Tensor:
    """Sequences of token ids as TensorRT-LLM takes them: all ids, and below where each ends."""
    ids = [token for word in words for token in word]
    ends, at = [], 0
    for word in words:
        at += len(word)
        ends.append(at)
    ends += [-1] * (len(ids) - len(ends))
    return Tensor(name, "INT32", (1, 2, len(ids)), [*ids, *ends])


def read_word_list(values: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """What word_list wrote.

    Raises:
        ValueError: an end is beyond the ids.
    """
    half = len(values) // 2
    ids, ends = values[:half], [end for end in values[half:] if end > 0]
    if any(not a < b <= half for a, b in zip([0, *ends], ends, strict=False)):
        raise ValueError("a list of words whose ends are not in order")
    return tuple(tuple(ids[a:b]) for a, b in zip([0, *ends], ends, strict=False))


def sampling_tensors(text: str) -> list[Tensor]:
    """The inputs of a request to our own model; `text` has the prompt, too."""
    return [Tensor(SAMPLING, BYTES, (1, 1), [text])]


def _default(field: Any) -> Any:
    return field.default if field.default is not MISSING else field.default_factory()


def _plain(value: Any) -> Any:
    if isinstance(value, frozenset):
        return sorted(value)
    if isinstance(value, Guide):
        return {"kind": value.kind, "text": value.text}
    if isinstance(value, Mapping):
        return {str(key): bias for key, bias in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _tokens(rows: Sequence[Sequence[Any]]) -> list[Token]:
    return [Token(row[0], row[1], tuple((i, p) for i, p in row[2]), row[3]) for row in rows]
