"""Choosing tokens where the logits are: on the GPU, for all rows of a step at once.

A row of 128,000 logits takes longer to copy to the host than the model takes to compute it. Only
requests whose choice needs the host (guides, penalties, biases, log-probabilities) have theirs
copied.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.engines.base import EngineFailed, Token

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from pipeline.engines.batching.sampling import Draw, Sampler

FEW = 1024  # likeliest tokens among which top_k and top_p are looked for first


class GpuLogits:
    """Logits [rows, vocabulary] of a step, in the model's type."""

    def __init__(self, rows: "torch.Tensor") -> None:
        self._rows = rows

    def choose(self, samplers: Sequence["Sampler"]) -> list[Token | BaseException]:
        """A token for each row, or the error that ends its request."""
        return self.begin(samplers).tokens()

    def begin(self, samplers: Sequence["Sampler"]) -> "Chosen":
        """Have tokens chosen, without waiting for them unless one is chosen on the host."""
        import torch

        with torch.inference_mode():
            best, ids = self._rows.max(-1)
            draws = {i: d for i, sampler in enumerate(samplers) if (d := sampler.draw())}
            if draws:
                rows = torch.tensor(list(draws), device=ids.device)
                ids[rows] = sampled(self._rows[rows], list(draws.values()))
            here = [i for i, sampler in enumerate(samplers) if sampler.on_host]
            copied = self._rows[torch.tensor(here)].float().cpu().numpy() if here else ()
            return Chosen(
                best,
                ids,
                [(i, samplers[i], logits) for i, logits in zip(here, copied, strict=True)],
            )


class Chosen:
    """The tokens that follow a step, on their way to the host.

    ids: [rows], where the logits are; of rows that are chosen on the host it says nothing.
    """

    def __init__(
        self,
        best: "torch.Tensor",
        ids: "torch.Tensor",
        on_host: Sequence[tuple[int, "Sampler", "NDArray[np.float32]"]],
    ) -> None:
        import torch

        self.ids, self._on_host = ids, on_host
        both = torch.stack([best.double(), ids.double()])
        self._both, self._copied = both, None
        if both.is_cuda:
            self._both = torch.empty(both.shape, dtype=both.dtype, pin_memory=True)
            self._both.copy_(both, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()

    def tokens(self) -> list[Token | BaseException]:
        """A token for each row, or the error that ends its request; waits for the step."""
        if self._copied:
            self._copied.synchronize()
        finite = self._both[0].isfinite().tolist()
        found: list[Token | BaseException] = [
            Token(int(token))
            if right
            else EngineFailed("the model gave logits that are not finite")
            for token, right in zip(self._both[1].tolist(), finite, strict=True)
        ]
        for i, sampler, logits in self._on_host:
            try:
                found[i] = sampler.choose(logits)
            except BaseException as error:
                found[i] = error
        return found


def sampled(logits: "torch.Tensor", draws: Sequence["Draw"]) -> "torch.Tensor":
    """A token of each row [rows, vocabulary], as sampling.Sampler draws it on the CPU: [rows]."""
    import torch

    def column(values: Sequence[float]) -> "torch.Tensor":
        return torch.tensor(values, dtype=torch.float64, device=logits.device)[:, None]

    scaled = logits.double()
    scaled -= scaled.amax(-1, keepdim=True)
    scaled /= column([draw.temperature for draw in draws])
    if any(draw.min_p > 0 for draw in draws):
        least = column([draw.min_p for draw in draws]).log()
        scaled.masked_fill_(scaled < least, -torch.inf)
    size = scaled.shape[1]
    ks = [draw.top_k if 0 < draw.top_k < size else size for draw in draws]
    limited = [k for k in ks if k < size]
    if limited:
        top = scaled.topk(max(limited), dim=-1).values
        places = torch.tensor([min(k, max(limited)) - 1 for k in ks], device=logits.device)
        least = top.gather(1, places[:, None])
        least[[i for i, k in enumerate(ks) if k == size]] = -torch.inf
        scaled.masked_fill_(scaled < least, -torch.inf)
    weights = scaled.exp_()
    if any(draw.top_p < 1 for draw in draws):
        _keep_top_p(weights, column([draw.top_p for draw in draws]))
    edges = weights.cumsum(-1)
    chosen = torch.searchsorted(
        edges, column([draw.random for draw in draws]) * edges[:, -1:], right=True
    )
    # Rounding may lead past the last token that has a weight.
    numbers = torch.arange(size, device=logits.device)
    last = torch.where(weights > 0, numbers, 0).amax(-1)
    return torch.minimum(chosen[:, 0], last)


def _keep_top_p(weights: "torch.Tensor", shares: "torch.Tensor") -> None:
    """Set weights [rows, vocabulary] to 0 that are not among the likeliest that have a share
    [rows, 1] of the sum; of equal weights the first ones count as likelier."""

    wanted = shares * weights.sum(-1, keepdim=True)
    count = min(FEW, weights.shape[1])
    values = weights.topk(count, dim=-1).values
    if count < weights.shape[1] and bool((values.sum(-1, keepdim=True) < wanted).any()):
        values = weights.sort(-1, descending=True).values
    number = (values.cumsum(-1) - values < wanted).sum(-1, keepdim=True)
    least = values.gather(1, number - 1)
    equal = weights == least
    left = number - (weights > least).sum(-1, keepdim=True)
    weights.masked_fill_((weights < least) | (equal & (equal.cumsum(-1) > left)), 0)
