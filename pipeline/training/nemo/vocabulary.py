"""A vocabulary that tensor-parallel ranks share, padded where their number does not divide it.

    model_for(folder, vocab_size=padded_size(shape.vocab, ranks))
    hide_padding(model, shape.vocab)

Megatron-Core reads and writes such tables beside checkpoints of the plain size: their further rows
are zeros. It would let them take part in the loss. Here no prediction names them, so that the loss
is that of one rank, and their gradient is zero.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core import parallel_state

_NEVER = -1e4  # a logit whose probability is 0 in every precision, and no infinity


def padded_size(vocab: int, ranks: int) -> int:
    """Rows of a table that so many ranks share alike."""
    return -(-vocab // ranks) * ranks


def hide_padding(model: Any, vocab: int) -> None:
    """Give the rows from `vocab` on no probability, once a NeMo model's Megatron module is built.

    vocab: tokens of the model itself.
    """
    if model.config.vocab_size == vocab:
        return
    configure = model.configure_model

    def configure_and_hide(*args: Any, **kwargs: Any) -> None:
        configure(*args, **kwargs)
        if (layer := getattr(model.module, "output_layer", None)) is not None:
            layer.register_forward_hook(_hide)

    def _hide(layer: Any, inputs: Any, output: tuple[torch.Tensor, Any]) -> tuple[Any, Any]:
        logits, bias = output
        share = logits.shape[-1]
        first = parallel_state.get_tensor_model_parallel_rank() * share
        kept = min(max(vocab - first, 0), share)
        if kept == share:
            return output
        hidden = logits.new_full((*logits.shape[:-1], share - kept), _NEVER)
        return torch.cat([logits[..., :kept], hidden], dim=-1), bias

    model.configure_model = configure_and_hide
