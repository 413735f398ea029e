"""PyTorch with transformers: runs an HF model token by token, many sequences at a time.

Has the same steps as ONNX Runtime's session, so that engines/batching/scheduler.py can run both.
The KV cache is ours: a buffer with a row for each sequence, each with its own length.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import DataError, ResourceError
from pipeline.models.files import MODELOPT_STATE, read_json

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray


class HfSession:
    """A decoder with a KV cache for `slots` sequences, one a row; used by one thread at a time.

    Args:
        folder: an HF folder, or one of ModelOpt's fake-quantized ones.
        slots: sequences at a time. max_seq_len: tokens of each, prompt and answer.

    Raises:
        DataError: transformers cannot load the folder, its model is not a text-only decoder, or its
            attention window is shorter than the sequences.
        ResourceError: too little memory.
    """

    def __init__(self, folder: Path, slots: int, max_seq_len: int) -> None:
        import torch

        _check_text_alone(folder)
        self.slots, self.max_seq_len = slots, max_seq_len
        self._torch = torch
        try:
            self._model = _load(folder)
            self._cache = _RowCache(self._model, slots, max_seq_len)
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise ResourceError(
                f"{folder} and a KV cache for {slots} sequences of {max_seq_len} tokens do not fit "
                "into memory: lower engine.max_batch_size or engine.max_seq_len; "
                "`python -m pipeline stage=profiles` shows what fits"
            ) from error
        except (OSError, ValueError) as error:
            raise DataError(f"{folder} cannot be served by transformers: {error}") from error
        _check_no_window(folder, self._model.config, max_seq_len)
        self.vocab_size: int = self._model.get_input_embeddings().weight.shape[0]

    def prefill(self, row: int, ids: Sequence[int], start: int) -> "NDArray[np.float32]":
        """Read `ids` as the tokens of a row's sequence from `start` on.

        Returns:
            Logits [len(ids), vocabulary]: for each token, those of the next one.
        """
        end = start + len(ids)
        positions = self._torch.arange(start, end)[None]
        return self._run([row], [list(ids)], positions, end)[0]

    def decode(self, ids: Sequence[int], lengths: Sequence[int]) -> "NDArray[np.float32]":
        """Add one token to each of the first len(ids) rows.

        Args:
            lengths: tokens in each row, the new one included.

        Returns:
            Logits [len(ids), vocabulary].
        """
        positions = self._torch.tensor(lengths)[:, None] - 1
        return self._run(list(range(len(ids))), [[i] for i in ids], positions, max(lengths))[:, 0]

    def move(self, source: int, target: int, length: int) -> None:
        """Copy a sequence of `length` tokens to another row."""
        for buffer in (*self._cache.keys, *self._cache.values):
            buffer[target, :, :length] = buffer[source, :, :length]

    def _run(
        self, rows: Sequence[int], ids: list[list[int]], positions: "torch.Tensor", longest: int
    ) -> "NDArray[np.float32]":
        torch, device = self._torch, self._model.device
        positions = positions.to(device)
        # Each token attends to those of its own row up to itself.
        mask = torch.arange(longest, device=device) <= positions[:, :, None]
        self._cache.aim(rows, positions, longest)
        with torch.inference_mode():
            output = self._model(
                input_ids=torch.tensor(ids, device=device),
                position_ids=positions,
                attention_mask=mask[:, None],
                past_key_values=self._cache,
                use_cache=True,
                **self._options(rows),
            )
            return output.logits.float().cpu().numpy()

    def _options(self, rows: Sequence[int]) -> dict[str, Any]:
        """Further arguments of a forward pass over these rows."""
        return {}


class _RowCache:
    """Keys and values of every layer, [slots, heads, tokens, head size].

    Has the part of transformers' Cache that a forward pass with a mask of our own uses.
    """

    is_compileable = False

    def __init__(self, model: Any, slots: int, max_seq_len: int) -> None:
        import torch

        config = model.config
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        shape = (slots, heads, max_seq_len, size)

        def buffers() -> list[Any]:
            # On a CPU, zeroed pages use memory only once they are written.
            return [
                torch.zeros(shape, dtype=model.dtype, device=model.device)
                for _ in range(config.num_hidden_layers)
            ]

        self.keys, self.values = buffers(), buffers()

    def aim(self, rows: Sequence[int], positions: "torch.Tensor", longest: int) -> None:
        """Set where the next pass writes: the rows, and the positions [rows, tokens] in them."""
        self._first, self._count = rows[0], len(rows)
        self._positions, self._longest = positions, longest

    def update(
        self, key: "torch.Tensor", value: "torch.Tensor", layer: int, *_: Any, **__: Any
    ) -> tuple["torch.Tensor", "torch.Tensor"]:
        """Write a layer's new keys and values, and return all of these rows."""
        import torch

        part = slice(self._first, self._first + self._count)
        rows = torch.arange(self._count, device=key.device)[:, None]
        found = []
        for buffer, new in ((self.keys[layer][part], key), (self.values[layer][part], value)):
            buffer[rows, :, self._positions] = new.transpose(1, 2)
            found.append(buffer[:, :, : self._longest])
        return found[0], found[1]

    def get_seq_length(self, layer: int = 0) -> int:
        return self._longest


def is_quantized(folder: Path) -> bool:
    """Whether ModelOpt wrote the folder with fake quantization."""
    return (folder / MODELOPT_STATE).is_file()


def _check_text_alone(folder: Path) -> None:
    """Refuse vision-language models, of which the decoder is only a part."""
    config = read_json(folder / "config.json", "give an HF model's folder")
    names = config.get("architectures") or []
    if pictured := [name for name in names if name.endswith("ForConditionalGeneration")]:
        raise DataError(
            f"{folder} holds a {pictured[0]}, and engine.name=hf serves text-only decoders: serve "
            "it with engine.name=vllm"
        )


def _check_no_window(folder: Path, config: Any, max_seq_len: int) -> None:
    """Refuse sequences longer than a sliding window: our mask lets tokens attend to all before."""
    # Models in which only some layers have a window list the kind of each layer.
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"]
    sizes = {
        "sliding_attention": getattr(config, "sliding_window", None),
        "chunked_attention": getattr(config, "attention_chunk_size", None),
    }
    window = min((size for kind, size in sizes.items() if size and kind in kinds), default=None)
    if window is not None and window < max_seq_len:
        raise DataError(
            f"{folder}: attention reaches back {window} tokens, and engine.name=hf is correct only "
            f"within them: set engine.max_seq_len={window}, or serve it with engine.name=vllm"
        )


def _load(folder: Path) -> Any:
    """The model in evaluation mode, in float32 on a CPU and in its own type on a GPU."""
    from pipeline.models import hf_model
    from pipeline.optimization import ptq as modelopt

    dtype = modelopt.compute_dtype(folder)
    if is_quantized(folder):
        import torch

        model = modelopt.load(folder).to(getattr(torch, dtype))
        modelopt.fold_weights(model)
        return model
    return hf_model.load_model(folder, dtype=dtype)
