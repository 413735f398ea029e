"""What BatchingEngine asks of a model: a step at a time, many sequences at once."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


# What BatchingEngine can do beyond sampling with any model (engines/base.py).
FEATURES = frozenset({"logprobs", "prompt_logprobs", "logit_bias", "penalties"})


class StepModel(Protocol):
    """A model with a KV cache of `slots` rows; used by one thread at a time.

    See adapters.onnxruntime_session.DecoderSession.
    """

    slots: int
    max_seq_len: int

    def prefill(self, row: int, ids: Sequence[int], start: int) -> "NDArray[np.float32]":
        """Read `ids` as tokens start … of a row's sequence; logits [len(ids), vocabulary]."""

    def decode(self, ids: Sequence[int], lengths: Sequence[int]) -> "NDArray[np.float32]":
        """One more token for each of the first rows; logits [len(ids), vocabulary], which may
        change with the next call.

        Args:
            lengths: tokens in each row, the new one included.
        """

    def move(self, source: int, target: int, length: int) -> None:
        """Copy a sequence of `length` tokens, and its adapter, to another row."""


class AdaptedModel(StepModel, Protocol):
    """One that has LoRA adapters; see adapters.hf_session.HfSession."""

    def use_adapter(self, row: int, name: str | None) -> None:
        """Answer a row's next sequence with an adapter; None: with the model itself."""

    def add_adapter(self, name: str, folder: Path) -> None:
        """
        Raises:
            ValueError: it is no adapter of this model.
        """

    def remove_adapter(self, name: str) -> None:
        """Let go of an adapter that no row in use names."""
