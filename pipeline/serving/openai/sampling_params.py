"""Sampling parameters: a request's fields, the model's defaults, and the engine's limits."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.engines.base import Engine, Guide, Sampling
from pipeline.engines.batching.guided_decoding import with_options
from pipeline.models.chat.renderer import Chat
from pipeline.serving.guides.checker import MOST_BYTES
from pipeline.serving.middleware import request_context
from pipeline.serving.openai.bodies import size_of
from pipeline.serving.openai.protocol import (
    ChatRequest,
    CompletionRequest,
    JsonFormat,
    SchemaFormat,
    invalid,
)

Request = ChatRequest | CompletionRequest
# Fields that not every engine supports: the feature (Engine.features) that each needs, and the
# value without effect.
FEATURES: Mapping[str, tuple[str, Any]] = {
    "frequency_penalty": ("penalties", 0),
    "presence_penalty": ("penalties", 0),
    "repetition_penalty": ("penalties", 1),
    "logit_bias": ("logit_bias", {}),
}


class SamplingParamsBuilder:
    """Turns requests into sampling parameters for one engine.

    Args:
        runtime: the engine's name, for messages.
        defaults: temperature, top_p … for requests without them. Those that the engine lacks are
            ignored.
        json_whitespace: characters of white space that guided JSON may have at each gap.
    """

    def __init__(
        self,
        engine: Engine,
        chat: Chat,
        runtime: str,
        defaults: Mapping[str, float],
        json_whitespace: int = 0,
    ) -> None:
        self.json_whitespace = json_whitespace
        self._engine, self._chat, self._runtime = engine, chat, runtime
        lacks = getattr(engine, "lacks", ())
        self._defaults = {name: value for name, value in defaults.items() if name not in lacks}

    def build(
        self,
        body: Request,
        limit: int | None,
        lengths: Sequence[int],
        guide: Guide | None,
        adapter: str | None,
    ) -> Sampling:
        """
        Args:
            limit: maximum number of tokens to generate; None for as many as fit.
            lengths: number of tokens in each prompt.

        Raises:
            ApiError: the engine lacks a feature, or prompt and completion do not fit.
        """
        self._require_features(body)
        longest, limit = max(lengths), None if limit is None else max(limit, 1)
        self._require_length(body, limit or 1, longest)
        if body.get("ignore_eos") and guide:
            raise invalid("ignore_eos", "guided decoding cannot ignore EOS: leave one of them out")

        def value_of(name: str, default: float) -> float:
            value = body.get(name)
            return self._defaults.get(name, default) if value is None else value

        has_penalties = "penalties" in self._engine.features
        return Sampling(
            max_tokens=limit or self._engine.max_seq_len - longest,
            temperature=value_of("temperature", 1.0),
            top_p=value_of("top_p", 1.0),
            top_k=max(0, int(value_of("top_k", 0))),
            min_p=value_of("min_p", 0.0),
            seed=None if body.seed is None else body.seed % 2**63,
            stop_ids=frozenset(() if body.get("ignore_eos") else self._chat.stop_ids),
            frequency_penalty=body.frequency_penalty or 0.0,
            presence_penalty=body.presence_penalty or 0.0,
            repetition_penalty=value_of("repetition_penalty", 1.0) if has_penalties else 1.0,
            logit_bias=self._biases(body),
            logprobs=body.num_logprobs,
            prompt_logprobs=body.num_logprobs is not None and bool(body.get("echo")),
            guide=guide,
            adapter=adapter,
            client=request_context.current().client,
        )

    def guide(self, body: Request) -> tuple[str | None, Guide | None]:
        """The field that asks for guided decoding, and the guide.

        Raises:
            ApiError: several fields ask for it, or the engine does not support it.
        """
        given = {name: value for name, value in _guide_fields(body).items() if value is not None}
        if len(given) > 1:
            raise invalid(list(given)[1], f"only one of {', '.join(given)} can be used")
        for name, value in given.items():
            self.require(name, "guide")
            return name, self._guide_of(name, value)
        return None, None

    def _guide_of(self, name: str, value: Any) -> Guide:
        """
        Raises:
            ApiError: a schema is too large, or is no JSON object.
        """
        require_short(name, value)
        if name == "guided_regex":
            return Guide("regex", value)
        if name == "guided_grammar":
            return Guide("grammar", value)
        if name == "guided_choice":
            return Guide("lark", "start: " + " | ".join(json.dumps(choice) for choice in value))
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                raise invalid(name, "this is not a JSON schema: send a JSON object") from None
        if not isinstance(value, dict):
            raise invalid(name, "a JSON schema must be a JSON object")
        try:
            return Guide("json_schema", json.dumps(with_options(value, self.json_whitespace)))
        except RecursionError:
            raise invalid(name, "the schema is nested too deeply") from None

    def require(self, field: str, feature: str) -> None:
        """
        Raises:
            ApiError: the engine lacks the feature; the message names the field and the engine.
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
        if body.num_logprobs is not None:
            self.require("logprobs", "logprobs")
        if body.num_logprobs is not None and body.get("echo"):
            self.require("echo", "prompt_logprobs")
        if body.max_tokens == 0 and not body.get("echo"):
            raise invalid("max_tokens", "0 is allowed only with echo: true")
        if body.get("top_logprobs") is not None and not body.get("logprobs"):
            raise invalid("top_logprobs", "needs logprobs: true")

    def _require_length(self, body: Request, limit: int, longest: int) -> None:
        max_seq_len, max_input_len = self._engine.max_seq_len, self._engine.max_input_len
        if longest == 0:
            text = "the prompt is empty: send at least one token"
        elif longest > max_input_len:
            text = (
                f"This model's maximum prompt length is {max_input_len} tokens. However, your "
                f"prompt has {longest} tokens. Please shorten it."
            )
        elif longest + limit > max_seq_len:
            text = (
                f"This model's maximum context length is {max_seq_len} tokens. However, you "
                f"requested {longest + limit} tokens ({longest} in the prompt, {limit} in the "
                "completion). Please reduce the length of the prompt or completion."
            )
        else:
            return
        param = "prompt" if isinstance(body, CompletionRequest) else "messages"
        raise invalid(param, text, "context_length_exceeded")

    def _biases(self, body: Request) -> dict[int, float]:
        biases = {int(token): bias for token, bias in (body.logit_bias or {}).items()}
        highest = self._chat.vocab_size - 1
        vocab_size = getattr(self._engine, "vocab_size", None) or highest + 1
        highest = min(highest, vocab_size - 1)
        if max(biases, default=0) > highest:
            raise invalid("logit_bias", f"token ids must be from 0 to {highest}")
        return biases


def _guide_fields(body: Request) -> dict[str, Any]:
    """What each field that can ask for guided decoding asks for."""
    response_format = body.get("response_format")
    found = {
        name: body.get(name)
        for name in ("guided_json", "guided_regex", "guided_choice", "guided_grammar")
    }
    if isinstance(response_format, JsonFormat):
        found["response_format"] = {"type": "object"}
    elif isinstance(response_format, SchemaFormat):
        found["response_format"] = response_format.json_schema.value
    return found


def require_short(field: str, value: Any) -> None:
    """
    Raises:
        ApiError: what an answer must match is larger than a guide may be.
    """
    if size_of(value, MOST_BYTES) > MOST_BYTES:
        raise invalid(field, f"it has more than {MOST_BYTES} characters and values: send less")
