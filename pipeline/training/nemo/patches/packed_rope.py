"""Rotary embedding of packs, in place.

Megatron-Core rotates the queries and keys of packed rows one after the other, each after a copy. It
rotates rows of one length in one kernel (`fused_single_qkv_rope`). That kernel takes an angle for
each position of a sequence, so it can rotate a pack too: its angles restart with each row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from pipeline.core.monkeypatch import Replacement
from pipeline.training.nemo.patches.records import PACKED_ANGLES, PACKED_ROTATION

if TYPE_CHECKING:
    from megatron.core.packed_seq_params import PackedSeqParams


def packed_rope() -> list[Replacement]:
    """Replacements in Megatron-Core while a model is trained on a GPU."""
    parts = PACKED_ROTATION.original("get_query_key_value_tensors")
    return [
        *PACKED_ANGLES.by(forward=_with_angles(PACKED_ANGLES.original("forward"))),
        *PACKED_ROTATION.by(get_query_key_value_tensors=_rotated_parts(parts)),
    ]


def angles_of(freqs: torch.Tensor, boundaries: torch.Tensor, tokens: int) -> torch.Tensor:
    """The angles of each token of a pack: [tokens, 1, 1, size].

    freqs: [longest row, 1, 1, size], the angles of a row's positions. boundaries: [rows + 1], where
    rows begin and the last one ends; padding follows, whose angles are not used.
    """
    places = torch.arange(tokens, device=boundaries.device, dtype=boundaries.dtype)
    rows = torch.searchsorted(boundaries, places, right=True) - 1
    return freqs[(places - boundaries[rows]).clamp(max=len(freqs) - 1)]


def _with_angles(original: Any) -> Any:
    """Attention that keeps a pack's angles, so that Megatron itself does not rotate.

    Ranks that share a row get no packs (pipeline.training.settings_checks).
    """

    def forward(
        self: Any,
        hidden_states: torch.Tensor,
        *arguments: Any,
        rotary_pos_emb: torch.Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
        **options: Any,
    ) -> Any:
        self._angles = None
        packed = packed_seq_params is not None and rotary_pos_emb is not None
        if packed and _rotates_whole_heads(self, rotary_pos_emb):
            self._angles = _angles(self, hidden_states, rotary_pos_emb, packed_seq_params)
            rotary_pos_emb = None
        return original(
            self,
            hidden_states,
            *arguments,
            rotary_pos_emb=rotary_pos_emb,
            packed_seq_params=packed_seq_params,
            **options,
        )

    return forward


def _rotates_whole_heads(self: Any, freqs: torch.Tensor) -> bool:
    """Whether nothing but the rotation is between the layer's product and attention, as the kernel
    has it: no norms of queries and keys, no part of a head that is left, no factor on the angles.
    """
    from megatron.core.transformer.identity_op import IdentityOp

    norms = (self.q_layernorm, self.k_layernorm)
    return (
        all(norm is None or isinstance(norm, IdentityOp) for norm in norms)
        and freqs.shape[-1] == self.hidden_size_per_attention_head
        and self.config.apply_rope_fusion
    )


def _angles(
    self: Any, hidden_states: torch.Tensor, freqs: torch.Tensor, packed: PackedSeqParams
) -> torch.Tensor:
    """A pack's angles, made by its first layer and kept with its boundaries."""
    found: torch.Tensor | None = getattr(packed, "angles", None)
    if found is None:
        tokens = len(hidden_states)
        if self.config.sequence_parallel:
            tokens *= self.config.tensor_model_parallel_size
        found = angles_of(freqs, packed.cu_seqlens_q, tokens)
        packed.angles = found  # type: ignore[attr-defined]
    return found


def _rotated_parts(original: Any) -> Any:
    """Query, key and value of an attention layer, rotated by its angles."""

    def parts(self: Any, hidden_states: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        if (angles := self._angles) is None:
            return original(self, hidden_states, *arguments, **options)
        from pipeline.training.nemo.patches.triton_kernels import rotated

        mixed, sizes = original(self, hidden_states, split_qkv=False)
        return rotated(mixed, angles, angles, sizes)

    return parts
