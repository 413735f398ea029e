"""What NeMo's query clients, TensorRT-LLM's ensemble and vLLM's backend ask a model of texts for.

Names, types and defaults are those of NVIDIA's Export-Deploy for NemoQueryLLM and its PyTorch
and Hugging Face counterparts, and of the two backends.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MOST_TOKENS = 256  # of an answer, of requests that do not say
# Inputs by what they mean: the first that is there counts. Clients have different names for one
# thing.
LENGTH = ("max_output_len", "max_length", "max_tokens")
LEAST = ("min_length", "min_tokens")  # min_output_len: the client sends max_output_len there
SEED = ("random_seed", "seed")
STOPS = ("stop_words_list", "end_strings", "stop_words")
# Inputs that would have an effect which there is none of, and the value that asks for none.
REFUSED: Mapping[str, tuple[Any, str]] = {
    "no_repeat_ngram_size": (0.0, "use repetition_penalty"),
    "all_probs": (False, "ask for n_top_logprobs"),
    "output_context_logits": (False, "ask for compute_logprob"),
    "output_generation_logits": (False, "ask for compute_logprob"),
    "output_logits": (False, "ask for compute_logprob"),
    "output_scores": (False, "ask for compute_logprob"),
    "n_log_probs": (0, "ask for n_top_logprobs"),
    "n_prompt_log_probs": (0, "ask for compute_logprob with echo"),
    "add_BOS": (False, "write the token into the prompt's template"),
}
# Fields of vLLM's sampling_parameters that are taken.
VLLM_FIELDS = (
    "max_tokens min_tokens temperature top_p top_k min_p seed stop presence_penalty "
    "frequency_penalty repetition_penalty"
).split()


@dataclass(frozen=True)
class Asked:
    """One prompt.

    nemo: whether it came as `prompts`, whose answers are `sentences`. chat: whether the prompt is a
    conversation in JSON. fields: of base.Sampling. logprobs: whether they are wanted; tops: so many
    of the likeliest. echo: whether text and log-probabilities begin with the prompt's.
    """

    prompt: str
    nemo: bool
    chat: bool = False
    stops: tuple[str, ...] = ()
    bad_words: tuple[str, ...] = ()
    fields: Mapping[str, Any] = field(default_factory=dict)
    logprobs: bool = False
    tops: int = 0
    echo: bool = False
    stream: bool = False


def read(inputs: Mapping[str, Any]) -> list[Asked]:
    """The prompts of a request.

    Args:
        inputs: arrays of the shape (prompts, values).

    Raises:
        ValueError: an input has a wrong shape or value, or would have no effect.
    """
    names = [name for name in ("prompts", "text_input") if name in inputs]
    if len(names) != 1:
        raise ValueError("send either prompts or text_input")
    prompts = inputs[names[0]]
    if prompts.ndim != 2 or prompts.shape[1] != 1:
        raise ValueError(
            f"{names[0]} has the shape {list(prompts.shape)}: send one text for each prompt, "
            "[prompts, 1]"
        )
    return [_asked(inputs, names[0], row) for row in range(len(prompts))]


def _asked(inputs: Mapping[str, Any], source: str, row: int) -> Asked:
    def value(*names: str, otherwise: Any = None) -> Any:
        for name in names:
            if name in inputs and inputs[name][row].size:
                return inputs[name][row].reshape(-1).tolist()[0]
        return otherwise

    def texts(*names: str) -> tuple[str, ...]:
        found = [t for name in names if name in inputs for t in inputs[name][row].reshape(-1)]
        return tuple(text for text in map(_text, found) if text)

    for name, (neutral, instead) in REFUSED.items():
        if value(name, otherwise=neutral) != neutral:
            raise ValueError(f"{name} is not supported: {instead}")
    if texts("lora_uids"):
        raise ValueError("lora_uids is not supported: adapters are served by engine=hf")
    fields = _sampling(value)
    stops = texts(*STOPS)
    if given := value("sampling_parameters"):
        more, stop = _vllm(_text(given))
        stops = (*stops, *stop)
        fields |= more
    nemo = source == "prompts"
    tops = int(value("n_top_logprobs", otherwise=0))
    return Asked(
        _text(inputs[source][row].reshape(-1)[0]),
        nemo,
        bool(value("apply_chat_template", otherwise=False)),
        stops,
        texts("bad_words_list", "bad_words"),
        fields,
        bool(value("compute_logprob", otherwise=False)) or tops > 0,
        tops,
        bool(value("echo", otherwise=False))
        or not value("exclude_input_in_output", otherwise=True),
        bool(value("stream", otherwise=False)),
    )


def _sampling(value: Any) -> dict[str, Any]:
    """Fields of base.Sampling. Without top_k, top_p or a temperature, the likeliest token."""
    fields: dict[str, Any] = {"max_tokens": int(value(*LENGTH, otherwise=MOST_TOKENS))}
    if fields["max_tokens"] < 1:
        raise ValueError(f"{LENGTH[0]} must be at least 1")
    temperature, top_k, top_p = value("temperature"), value("top_k"), value("top_p")
    chooses = (top_k or 0) > 1 or (top_p or 0) > 0
    if top_k is None and top_p is None:
        chooses = (temperature or 0) > 0
    if value("use_greedy", otherwise=False) or not chooses or temperature == 0:
        fields["temperature"] = 0.0
    else:
        fields["temperature"] = 1.0 if temperature is None else float(temperature)
        fields |= {"top_k": int(top_k)} if (top_k or 0) > 0 else {}
        fields |= {"top_p": float(top_p)} if (top_p or 0) > 0 else {}
    if (seed := value(*SEED)) is not None:
        fields["seed"] = int(seed) % 2**63
    if least := value(*LEAST):
        fields["min_tokens"] = min(int(least), fields["max_tokens"])
    for name in ("repetition_penalty", "presence_penalty", "frequency_penalty"):
        if (penalty := value(name)) is not None:
            fields[name] = float(penalty)
    _check(fields)
    return fields


def _check(fields: Mapping[str, Any]) -> None:
    bounds = {
        "temperature": (0, 2),
        "top_p": (0, 1),
        "repetition_penalty": (1e-6, 10),
        "presence_penalty": (-2, 2),
        "frequency_penalty": (-2, 2),
    }
    for name, (least, most) in bounds.items():
        if name in fields and not least <= fields[name] <= most:
            raise ValueError(f"{name}={fields[name]:g} must be from {least:g} to {most:g}")


def _vllm(text: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """vLLM's sampling_parameters: fields of base.Sampling, and stop strings."""
    try:
        given = json.loads(text)
        unknown = given.keys() - VLLM_FIELDS
    except (ValueError, AttributeError) as error:
        raise ValueError(f"sampling_parameters must be an object in JSON: {error}") from None
    if unknown:
        raise ValueError(f"sampling_parameters: {min(unknown)} is not supported")
    stop = given.pop("stop", None) or ()
    stops = (stop,) if isinstance(stop, str) else tuple(map(str, stop))
    try:
        fields = {
            name: (int if name in ("max_tokens", "min_tokens", "top_k", "seed") else float)(v)
            for name, v in given.items()
            if v is not None
        }
    except (TypeError, ValueError) as error:
        raise ValueError(f"sampling_parameters: {error}") from None
    if fields.get("top_k", 0) < 0:
        del fields["top_k"]  # vLLM's word for all
    _check(fields)
    return fields, stops


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
