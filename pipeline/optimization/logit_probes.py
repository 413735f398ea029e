"""Logits of an HF model at a few positions, and how far they are from another model's.

reference = logits_at(model, probes)                     # probes: (ids, positions) pairs
divergence(logits_at(quantized, probes), reference)      # {"kl": ..., "greedy_agreement": ...}
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import PipelineError
from pipeline.optimization.calibration import NOT_FINITE

if TYPE_CHECKING:
    import torch

_TOKENS = 8192  # at a time


def logits_at(model: Any, rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> torch.Tensor:
    """Logits at chosen positions of some rows; rows of similar length are computed together.

    rows: (ids, positions) pairs. Returns [chosen positions, vocabulary], float32, on the CPU.

    Raises:
        PipelineError: some are infinite or not a number.
    """
    import torch

    found: list[torch.Tensor] = [torch.empty(0)] * len(rows)
    for numbers in _batches([len(ids) for ids, _ in rows]):
        width = max(len(rows[n][0]) for n in numbers)
        # Tokens that follow do not change a token's logits.
        padded = [[*rows[n][0], *[0] * (width - len(rows[n][0]))] for n in numbers]
        with torch.inference_mode():
            ids = torch.tensor(padded, device=model.device)
            hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
            for n, states in zip(numbers, hidden, strict=True):
                chosen = states[list(rows[n][1])]
                found[n] = model.get_output_embeddings()(chosen).float().cpu()
    result = torch.cat(found)
    if not torch.isfinite(result).all():
        raise PipelineError(NOT_FINITE)
    return result


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """The numbers of rows, longest first, in batches of _TOKENS with padding, or of one."""
    batch: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda n: -lengths[n]):
        if batch and lengths[batch[0]] * (len(batch) + 1) > _TOKENS:
            yield batch
            batch = []
        batch.append(number)
    yield batch


def divergence(ours: torch.Tensor, reference: torch.Tensor) -> dict[str, float]:
    """How far logits are from reference logits, both [positions, vocabulary] float32.

    kl: mean Kullback-Leibler divergence of ours from the reference, in nats.
    greedy_agreement: share of positions where both have the same likeliest token.
    """
    ours_log, reference_log = ours.log_softmax(-1), reference.log_softmax(-1)
    kl = (reference_log.exp() * (reference_log - ours_log)).sum(-1).mean()
    agreement = (ours.argmax(-1) == reference.argmax(-1)).float().mean()
    return {"kl": float(kl), "greedy_agreement": float(agreement)}
