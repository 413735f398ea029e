"""A request's settings as the engine's: what to sample, what to match, and whether it fits."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.engines.base import Engine, Guide, Sampling
from pipeline.models.chat.renderer import Chat
from pipeline.serving.openai.protocol import (
    ChatRequest,
    CompletionRequest,
    JsonFormat,
    SchemaFormat,
    invalid,
)

Request = ChatRequest | CompletionRequest
# Fields that not every engine can do: the feature (engine.Engine.features) that each takes, and
# the value that asks for nothing.
FEATURES: Mapping[str, tuple[str, Any]] = {
    "frequency_penalty": ("penalties", 0),
    "presence_penalty": ("penalties", 0),
    "repetition_penalty": ("penalties", 1),
    "logit_bias": ("logit_bias", {}),
}


class Settings:
    """Of the requests to one engine.

    Args:
        runtime: the engine's name, for messages.
        defaults: temperature, top_p … for requests that do not say, but for what the engine lacks.
    """

    def __init__(
        self, engine: Engine, chat: Chat, runtime: str, defaults: Mapping[str, float]
    ) -> None:
        self._engine, self._chat, self._runtime = engine, chat, runtime
        lacks = getattr(engine, "lacks", ())
        self._defaults = {name: value for name, value in defaults.items() if name not in lacks}

    def sampling(
        self,
        body: Request,
        limit: int | None,
        lengths: Sequence[int],
        guide: Guide | None,
        adapter: str | None,
    ) -> Sampling:
        """
        Args:
            limit: tokens of an answer at most; None for as many as fit.
            lengths: tokens of each prompt.

        Raises:
            Refusal: the engine lacks something, or prompt and answer do not fit.
        """
        self._require_features(body)
        longest, limit = max(lengths), None if limit is None else max(limit, 1)
        self._require_room(body, limit or 1, longest)
        if body.get("ignore_eos") and guide:
            raise invalid("ignore_eos", "an answer in a given form ends where the form does")

        def chosen(name: str, otherwise: float) -> float:
            value = body.get(name)
            return self._defaults.get(name, otherwise) if value is None else value

        penalizes = "penalties" in self._engine.features
        return Sampling(
            max_tokens=limit or self._engine.max_seq_len - longest,
            temperature=chosen("temperature", 1.0),
            top_p=chosen("top_p", 1.0),
            top_k=max(0, int(chosen("top_k", 0))),
            min_p=chosen("min_p", 0.0),
            seed=None if body.seed is None else body.seed % 2**63,
            stop_ids=frozenset(() if body.get("ignore_eos") else self._chat.stop_ids),
            frequency_penalty=body.frequency_penalty or 0.0,
            presence_penalty=body.presence_penalty or 0.0,
            repetition_penalty=chosen("repetition_penalty", 1.0) if penalizes else 1.0,
            logit_bias=self._biases(body),
            logprobs=body.tops,
            prompt_logprobs=body.tops is not None and bool(body.get("echo")),
            guide=guide,
            adapter=adapter,
        )

    def guide(self, body: Request) -> tuple[str | None, Guide | None]:
        """What the answer must match, and the field that says so.

        Raises:
            Refusal: several fields say so, or the engine cannot.
        """
        asked = {name: guide for name, guide in _guides(body).items() if guide}
        if len(asked) > 1:
            raise invalid(list(asked)[1], f"only one of {', '.join(asked)} can be kept to")
        for name, guide in asked.items():
            self.require(name, "guide")
            return name, guide
        return None, None

    def require(self, field: str, feature: str) -> None:
        """
        Raises:
            Refusal: the engine lacks it; names field and engine.
        """
        if feature not in self._engine.features:
            raise invalid(
                field,
                f"the {self._runtime} engine that serves this model does not support {field}",
                "unsupported_parameter",
            )

    def _require_features(self, body: Request) -> None:
        for field, (feature, neutral) in FEATURES.items():
            if body.get(field) not in (None, neutral):
                self.require(field, feature)
        if body.tops is not None:
            self.require("logprobs", "logprobs")
        if body.tops is not None and body.get("echo"):
            self.require("echo", "prompt_logprobs")
        if body.max_tokens == 0 and not body.get("echo"):
            raise invalid("max_tokens", "0 needs echo: there would be nothing to answer")
        if body.get("top_logprobs") is not None and not body.get("logprobs"):
            raise invalid("top_logprobs", "needs logprobs: true")

    def _require_room(self, body: Request, limit: int, longest: int) -> None:
        most, read = self._engine.max_seq_len, self._engine.max_input_len
        if longest == 0:
            text = "the prompt is empty"
        elif longest > read:
            text = (
                f"This model reads prompts of at most {read} tokens. However, your prompt has "
                f"{longest} tokens. Please shorten it."
            )
        elif longest + limit > most:
            text = (
                f"This model's maximum context length is {most} tokens. However, you requested "
                f"{longest + limit} tokens ({longest} in the prompt, {limit} in the "
                "completion). Please reduce the length of the prompt or completion."
            )
        else:
            return
        param = "prompt" if isinstance(body, CompletionRequest) else "messages"
        raise invalid(param, text, "context_length_exceeded")

    def _biases(self, body: Request) -> dict[int, float]:
        biases = {int(token): bias for token, bias in (body.logit_bias or {}).items()}
        highest = self._chat.vocab_size - 1
        if max(biases, default=0) > highest:
            raise invalid("logit_bias", f"token ids go from 0 to {highest}")
        return biases


def _guides(body: Request) -> dict[str, Guide | None]:
    """By the fields that can ask for one."""
    form = body.get("response_format")
    found: dict[str, Guide | None] = {
        name: _guided(name, body.get(name))
        for name in ("guided_json", "guided_regex", "guided_choice", "guided_grammar")
    }
    if isinstance(form, JsonFormat):
        found["response_format"] = Guide("json_object", "")
    elif isinstance(form, SchemaFormat):
        found["response_format"] = Guide("json_schema", json.dumps(form.json_schema.value))
    return found


def _guided(name: str, value: Any) -> Guide | None:
    """A guide in the form that NIM takes it."""
    if value is None:
        return None
    if name == "guided_regex":
        return Guide("regex", value)
    if name == "guided_choice":
        return Guide("lark", "start: " + " | ".join(json.dumps(choice) for choice in value))
    if name == "guided_json":
        return Guide("json_schema", value if isinstance(value, str) else json.dumps(value))
    from llguidance.gbnf_to_lark import any_to_lark

    try:
        return Guide("lark", any_to_lark(value))
    except Exception as error:  # as its converter raises it
        raise invalid(name, f"this is no grammar in Lark's or GBNF's notation: {error}") from error
