"""The interface of a model that BatchingEngine runs: step by step, many sequences at a time."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pipeline.engines.batching.gpu_sampling import GpuLogits


# What BatchingEngine can do beyond sampling with any model (engines/base.py).
FEATURES = frozenset(
    {
        *("logprobs", "prompt_logprobs", "logit_bias", "penalties"),
        *("min_tokens", "allowed_token_ids", "bad_words"),
        "cache_salt",  # see prefixes.py
        "turns",
    }
)


class ModelRunner(Protocol):
    """A model with a KV cache of `slots` rows; used by one thread at a time.

    A call for one row changes no other row, and repeating a call gives the same again: so a fault
    can be traced to one sequence. See onnxruntime/session.py.

    vocab_size: rows of the embedding; token ids beyond are refused.
    """

    slots: int
    max_seq_len: int
    vocab_size: int

    def prefill(self, row: int, ids: Sequence[int], start: int) -> "NDArray[np.float32]":
        """Read `ids` as tokens of a sequence from `start` on; logits [len(ids), vocabulary]."""

    def decode(self, ids: Sequence[int], lengths: Sequence[int]) -> "NDArray[np.float32]":
        """Add one token to each of the first rows; logits [len(ids), vocabulary], which the next
        call may overwrite.

        Args:
            lengths: tokens in each row, the new one included.
        """

    def move(self, source: int, target: int, length: int) -> None:
        """Copy a sequence of `length` tokens, and its adapter, to another row; the first stays."""


class GpuModelRunner(ModelRunner, Protocol):
    """A model whose logits stay on the GPU, where tokens are chosen, if `on_gpu`.

    prompt_tokens_per_step: that one step of the engine reads at most.
    """

    on_gpu: bool
    prompt_tokens_per_step: int

    def read(self, row: int, ids: Sequence[int], start: int) -> "GpuLogits":
        """As prefill, for the last token alone: [1, vocabulary]."""

    def advance(self, ids: Sequence[int], lengths: Sequence[int]) -> "GpuLogits":
        """As decode."""


class LoraModelRunner(ModelRunner, Protocol):
    """A model with LoRA adapters; see hf/lora.py."""

    def use_adapter(self, row: int, name: str | None) -> None:
        """Request a row's next sequence with an adapter; None: with the model itself."""

    def check_adapter(self, folder: Path) -> None:
        """Check an adapter before it is loaded; may run in another thread beside the model.

        Raises:
            ValueError: it is not an adapter for this model.
        """

    def add_adapter(self, name: str, folder: Path) -> None:
        """Load an adapter in the PEFT library's format, or leave the model as it was.

        Raises:
            ValueError: it is not an adapter for this model.
        """

    def remove_adapter(self, name: str) -> None:
        """Unload an adapter that no running sequence uses."""
