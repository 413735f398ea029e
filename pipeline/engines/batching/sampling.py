"""Choosing a token from logits, on the CPU."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.engines.base import EngineFailed, Sampling, Token

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pipeline.engines.batching.guided_decoding import Matching

GREEDY = 1e-5  # temperatures below take the likeliest token, as in vLLM
LEAST = -9999.0  # stands for minus infinity, which JSON cannot express, as in OpenAI's API


@dataclass(frozen=True)
class Draw:
    """How a token is drawn at random, and the random number, from 0 to below 1."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    random: float


class Sampler:
    """Samples the tokens of one answer.

    In the same order as vLLM: guided decoding, allowed tokens, bad words, min_tokens, logit_bias,
    penalties, temperature, min_p, top_k, top_p, then a random draw. Log-probabilities are the
    model's own, before any of these.

    Args:
        prompt: its tokens count for repetition_penalty.
        matching: the state of guided decoding, if the request has a guide.
    """

    def __init__(
        self, sampling: Sampling, prompt: Sequence[int] = (), matching: "Matching | None" = None
    ) -> None:
        import numpy as np

        self._np = np
        self._sampling = sampling
        self._prompt = prompt
        self._matching = matching
        draws = sampling.temperature > GREEDY
        self._random = np.random.default_rng(sampling.seed) if draws else None
        self._penalizes = bool(sampling.frequency_penalty or sampling.presence_penalty)
        self._penalizes |= sampling.repetition_penalty != 1
        self._forbids = bool(
            sampling.allowed_ids is not None or sampling.bad_words or sampling.min_tokens
        )
        self._alters = bool(self._penalizes or self._forbids or sampling.logit_bias or matching)
        # Whether `choose` must see the logits; else the likeliest token, or `draw`, decides.
        self.on_host = self._alters or sampling.logprobs is not None
        self._answer: list[int] = []  # its tokens, if something is forbidden
        self._counts: NDArray[np.float32] | None = None  # of each token in the answer
        self._seen: NDArray[np.bool_] | None = None  # tokens of prompt and answer
        self._allowed: NDArray[np.bool_] | None = None  # tokens that the answer may have

    def draw(self) -> Draw | None:
        """How to draw the next token where the logits are; None if nothing is drawn there."""
        if self._random is None or self.on_host:
            return None
        how = self._sampling
        return Draw(how.temperature, how.top_k, how.top_p, how.min_p, self._random.random())

    def choose(self, logits: "NDArray[np.float32]") -> Token:
        """A token from logits [vocabulary].

        Raises:
            EngineFailed: the logits are not finite.
            ValueError: the guide has become too complex, or no token is allowed.
        """
        best = int(logits.argmax())
        if not self._np.isfinite(logits[best]):
            raise EngineFailed("the model gave logits that are not finite")
        altered = logits
        if self._alters:
            altered = self._alter(logits.copy())
            best = int(altered.argmax())
            if altered[best] == -self._np.inf:
                raise ValueError(
                    "no token is allowed here: allowed_token_ids, bad_words, min_tokens and the "
                    "format of the answer leave none"
                )
        token = best if self._random is None else self._draw(altered, best, self._random)
        if self._matching:
            self._matching.accept(token)
        if self._forbids:
            self._answer.append(token)
        if self._counts is not None and self._seen is not None:
            self._counts[token] += 1
            self._seen[token] = True
        if self._sampling.logprobs is None:
            return Token(token)
        return score(logits[None], [token], self._sampling.logprobs)[0]

    def _alter(self, logits: "NDArray[np.float32]") -> "NDArray[np.float32]":
        np, how = self._np, self._sampling
        if self._matching:
            self._matching.mask(logits)
        if self._forbids:
            self._forbid(logits)
        for token, bias in how.logit_bias.items():
            logits[token] += bias
        if self._penalizes:
            if self._counts is None or self._seen is None:
                self._counts = np.zeros(len(logits), np.float32)
                self._seen = np.zeros(len(logits), np.bool_)
                self._seen[list(self._prompt)] = True
            scale = np.where(logits > 0, 1 / how.repetition_penalty, how.repetition_penalty)
            logits = np.where(self._seen, logits * scale, logits)
            logits -= how.frequency_penalty * self._counts
            logits -= how.presence_penalty * (self._counts > 0)
        return logits

    def _forbid(self, logits: "NDArray[np.float32]") -> None:
        np, how, answer = self._np, self._sampling, self._answer
        if how.allowed_ids is not None:
            if self._allowed is None:
                self._allowed = np.zeros(len(logits), np.bool_)
                self._allowed[list(how.allowed_ids)] = True
            logits[~self._allowed] = -np.inf
        for *before, last in how.bad_words:
            if not before or answer[-len(before) :] == before:
                logits[last] = -np.inf
        if len(answer) < how.min_tokens:
            logits[list(how.stop_ids)] = -np.inf

    def _draw(self, logits: "NDArray[np.float32]", best: int, random: "np.random.Generator") -> int:
        np, how = self._np, self._sampling
        # The best token's logit is 0 then, so that no exponential overflows.
        scaled = (logits.astype(np.float64) - float(logits[best])) / how.temperature
        if how.min_p > 0:
            scaled[scaled < np.log(how.min_p)] = -np.inf
        if 0 < how.top_k < len(scaled):
            scaled[scaled < np.partition(scaled, -how.top_k)[-how.top_k]] = -np.inf
        weights = np.exp(scaled)
        if how.top_p < 1:
            order = np.argsort(-weights, kind="stable")
            before = np.cumsum(weights[order]) - weights[order]
            weights[order[before >= how.top_p * weights.sum()]] = 0
        edges = np.cumsum(weights)
        chosen = np.searchsorted(edges, random.random() * edges[-1], side="right")
        return int(min(chosen, np.flatnonzero(weights)[-1]))


def choose_all(
    samplers: Sequence[Sampler], rows: "Sequence[NDArray[np.float32] | EngineFailed]"
) -> list[Token | BaseException]:
    """A token for each row of logits [vocabulary], or the error that ends its request."""
    found: list[Token | BaseException] = []
    for sampler, logits in zip(samplers, rows, strict=True):
        try:
            if isinstance(logits, EngineFailed):
                raise logits
            found.append(sampler.choose(logits))
        except BaseException as error:
            found.append(error)
    return found


def score(logits: "NDArray[np.float32]", ids: Sequence[int], tops: int) -> list[Token]:
    """Tokens with their log-probabilities, and those of the `tops` most likely tokens.

    Args:
        logits: [tokens, vocabulary], from which `ids` were chosen.
    """
    return [
        _scored(row, token, tops) for row, token in zip(logits, ids, strict=True)
    ]  # one by one: a large vocabulary has megabytes for each


def _scored(logits: "NDArray[np.float32]", token: int, tops: int) -> Token:
    import numpy as np

    values = logits.astype(np.float64)
    values -= values.max()
    values -= np.log(np.exp(values).sum())
    values = np.maximum(values, LEAST)
    rank = 1 + int((values > values[token]).sum())
    return Token(token, float(values[token]), _likeliest(values, tops), rank)


def _likeliest(row: "NDArray[np.float64]", count: int) -> tuple[tuple[int, float], ...]:
    """(id, value) of the highest values, in falling order; the lower id first if they are equal."""
    import numpy as np

    count = min(count, len(row))
    found = np.argpartition(-row, count - 1)[:count].tolist() if count else []
    return tuple((i, float(row[i])) for i in sorted(found, key=lambda i: (-row[i], i)))
