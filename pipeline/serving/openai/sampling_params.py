"""Sampling parameters: a request's fields, the model's defaults, and the engine's limits."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from pipeline.engines.base import Engine, Guide, Sampling
from pipeline.models.chat.renderer import Chat
from pipeline.serving.guides.grammars import encode
from pipeline.serving.middleware import request_context
from pipeline.serving.openai.errors import ApiError, invalid
from pipeline.serving.openai.guide_fields import guide_of
from pipeline.serving.openai.protocol import ChatRequest, CompletionRequest

Request = ChatRequest | CompletionRequest
# Fields that not every engine supports: the feature (Engine.features) that each needs, and the
# value without effect.
FEATURES: Mapping[str, tuple[str, Any]] = {
    "frequency_penalty": ("penalties", 0),
    "presence_penalty": ("penalties", 0),
    "repetition_penalty": ("penalties", 1),
    "logit_bias": ("logit_bias", {}),
    "min_tokens": ("min_tokens", 0),
    "bad_words": ("bad_words", []),
    "allowed_token_ids": ("allowed_token_ids", None),
    "cache_salt": ("cache_salt", None),
    "prompt_logprobs": ("prompt_logprobs", None),
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
        self._lacks = lacks = getattr(engine, "lacks", ())
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
        if (body.min_tokens or 0) > (limit or self._engine.max_seq_len - longest):
            raise invalid("min_tokens", "is above max_tokens")
        self._require_known("stop_token_ids", body.stop_token_ids or ())
        if body.get("ignore_eos") and guide:
            raise invalid("ignore_eos", "guided decoding cannot ignore EOS: leave one of them out")

        def value_of(name: str, default: float) -> float:
            value = body.get(name)
            return self._defaults.get(name, default) if value is None else value

        ends = frozenset(() if body.get("ignore_eos") else self._chat.stop_ids)
        has_penalties = "penalties" in self._engine.features
        return Sampling(
            max_tokens=limit or self._engine.max_seq_len - longest,
            temperature=value_of("temperature", 1.0),
            top_p=value_of("top_p", 1.0),
            top_k=max(0, int(value_of("top_k", 0))),
            min_p=value_of("min_p", 0.0),
            seed=None if body.seed is None else body.seed % 2**63,
            stop_ids=ends | frozenset(body.stop_token_ids or ()),
            min_tokens=body.min_tokens or 0,
            allowed_ids=self._allowed(body),
            bad_words=self._bad_words(body),
            cache_salt=body.cache_salt,
            frequency_penalty=body.frequency_penalty or 0.0,
            presence_penalty=body.presence_penalty or 0.0,
            repetition_penalty=value_of("repetition_penalty", 1.0) if has_penalties else 1.0,
            logit_bias=self._biases(body),
            logprobs=body.num_logprobs,
            prompt_logprobs=_prompt_logprobs(body),
            guide=guide,
            adapter=adapter,
            client=request_context.current().client,
        )

    def guide(self, body: Request) -> tuple[str | None, Guide | None]:
        """The field that asks for guided decoding, and the guide.

        Raises:
            ApiError: several fields ask for it, or the engine does not support it.
        """
        field, guide = guide_of(body, self._chat, self.json_whitespace)
        if field:
            self.require(field, "guide")
        return field, guide

    def require(self, field: str, feature: str) -> None:
        """
        Raises:
            ApiError: the engine lacks the feature; the message names the field and the engine.
        """
        if feature not in self._engine.features:
            raise self._unsupported(field)

    def _unsupported(self, field: str) -> ApiError:
        return invalid(
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
        if shows_prompt_logprobs(body):
            self.require("echo", "prompt_logprobs")
        if body.max_tokens == 0 and not body.echo:
            raise invalid("max_tokens", "0 is allowed only with echo: true")
        if body.get("top_logprobs") and not body.get("logprobs"):
            raise invalid("top_logprobs", "needs logprobs: true")
        if body.stop_token_ids and "stop_token_ids" in self._lacks:
            raise self._unsupported("stop_token_ids")
        if body.prompt_logprobs is not None and body.stream:
            raise invalid("prompt_logprobs", "not available in streams: leave out stream")
        if body.stream_options is not None and not body.stream:
            raise invalid("stream_options", "needs stream: true")
        if body.spaces_between_special_tokens is False and body.skip_special_tokens is False:
            raise self._unsupported("spaces_between_special_tokens")
        if body.return_tokens_as_token_ids and body.num_logprobs is None:
            raise invalid("return_tokens_as_token_ids", "needs logprobs")
        if body.truncate_prompt_tokens == 0:
            raise invalid("truncate_prompt_tokens", "must be -1, or at least 1")
        if body.truncation_side and body.truncate_prompt_tokens is None:
            raise invalid("truncation_side", "needs truncate_prompt_tokens")

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
        self._require_known("logit_bias", biases)
        return biases

    def _allowed(self, body: Request) -> frozenset[int] | None:
        if body.allowed_token_ids is None:
            return None
        self._require_known("allowed_token_ids", body.allowed_token_ids)
        return frozenset(body.allowed_token_ids)

    def _bad_words(self, body: Request) -> tuple[tuple[int, ...], ...]:
        """Each word's tokens at the beginning of a text, and after a space if that is one more
        way to write it with as many tokens."""
        found: list[tuple[int, ...]] = []
        for word in body.bad_words or ():
            text = word.lstrip()
            if not text:
                raise invalid("bad_words", "a word is empty: leave it out")
            try:
                alone, inside = (tuple(encode(self._chat, t)) for t in (text, f" {text}"))
            except TypeError:  # tokenizers' error for text that UTF-8 cannot encode
                raise invalid("bad_words", "a word has half a surrogate pair") from None
            found.append(alone)
            if inside[0] != alone[0] and len(inside) == len(alone):
                found.append(inside)
        for tokens in found:
            self._require_known("bad_words", tokens)
        return tuple(found)

    def _require_known(self, field: str, tokens: Collection[int]) -> None:
        highest = self._chat.vocab_size - 1
        vocab_size = getattr(self._engine, "vocab_size", None) or highest + 1
        highest = min(highest, vocab_size - 1)
        if max(tokens, default=0) > highest:
            raise invalid(field, f"token ids must be from 0 to {highest}")


def shows_prompt_logprobs(body: Request) -> bool:
    """Whether the prompt is repeated with its log-probabilities."""
    return isinstance(body, CompletionRequest) and bool(body.echo) and body.logprobs is not None


def _prompt_logprobs(body: Request) -> int | None:
    counts = [] if body.prompt_logprobs is None else [body.prompt_logprobs]
    if shows_prompt_logprobs(body):
        counts.append(body.num_logprobs or 0)
    return max(counts, default=None)
