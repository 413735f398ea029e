"""Choosing a token from logits, on the CPU."""

from typing import TYPE_CHECKING

from pipeline.serving.engine import EngineFailed, Sampling

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Sampler:
    """Chooses the tokens of one answer: temperature, then top_k, then top_p, then chance."""

    def __init__(self, sampling: Sampling) -> None:
        import numpy as np

        self._np = np
        self._sampling = sampling
        self._random = np.random.default_rng(sampling.seed) if sampling.temperature > 0 else None

    def choose(self, logits: "NDArray[np.float32]") -> int:
        """A token id from logits [vocabulary].

        Raises:
            EngineFailed: the logits hold no number.
        """
        np, how = self._np, self._sampling
        best = int(logits.argmax())
        if not np.isfinite(logits[best]):
            raise EngineFailed("the model gave logits that are not finite")
        if self._random is None:
            return best
        # The best token's logit is 0 then, so that no exponential overflows.
        scaled = (logits.astype(np.float64) - float(logits[best])) / how.temperature
        if 0 < how.top_k < len(scaled):
            scaled[scaled < np.partition(scaled, -how.top_k)[-how.top_k]] = -np.inf
        weights = np.exp(scaled)
        if how.top_p < 1:
            order = np.argsort(-weights, kind="stable")
            before = np.cumsum(weights[order]) - weights[order]
            weights[order[before >= how.top_p * weights.sum()]] = 0
        edges = np.cumsum(weights)
        chosen = np.searchsorted(edges, self._random.random() * edges[-1], side="right")
        return int(min(chosen, np.flatnonzero(weights)[-1]))
