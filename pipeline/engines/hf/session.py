"""PyTorch with transformers: runs an HF model token by token, many sequences at a time.

Has the same steps as ONNX Runtime's session, so that engines/batching/scheduler.py can run both.
The KV cache is ours: a buffer with a row for each sequence, each with its own length. On a GPU with
flash attention, steps are CUDA graphs and tokens are chosen on the GPU (graphs.py); elsewhere each
step has a mask.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import DataError, ResourceError
from pipeline.engines.batching.gpu_sampling import GpuLogits
from pipeline.engines.hf import flash
from pipeline.engines.hf.flat_cache import LONGEST_PART
from pipeline.engines.hf.graphs import FlatModel, Pass
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
            attention is not known for sequences of that length.
        ResourceError: too little memory.
    """

    def __init__(self, folder: Path, slots: int, max_seq_len: int) -> None:
        import torch

        _check_text_alone(folder)
        self.slots, self.max_seq_len = slots, max_seq_len
        self._torch = torch
        try:
            self._model = _load(folder)
            self._flat = self._cache = None
            if flash.usable(self._model):
                flash.fix_frequencies(self._model, max_seq_len)
                self._flat = FlatModel(
                    self._model,
                    slots,
                    max_seq_len,
                    flash.attention,
                    write=flash.write,
                    graphs=flash.launches_alike(self._model),
                )
            else:
                self._cache = _RowCache(self._model, slots, max_seq_len)
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise ResourceError(
                f"{folder} and a KV cache for {slots} sequences of {max_seq_len} tokens do not fit "
                "into memory: lower engine.max_batch_size or engine.max_seq_len; "
                "`python -m pipeline stage=profiles` shows what fits"
            ) from error
        except (OSError, ValueError) as error:
            raise DataError(f"{folder} cannot be served by transformers: {error}") from error
        self._masks = _Masks(folder, self._model, max_seq_len)
        self.on_gpu = self._flat is not None
        if self.on_gpu:
            self.prompt_tokens_per_step = LONGEST_PART
        self.vocab_size: int = self._model.get_input_embeddings().weight.shape[0]

    def prefill(self, row: int, ids: Sequence[int], start: int) -> "NDArray[np.float32]":
        """Read `ids` as the tokens of a row's sequence from `start` on.

        Returns:
            Logits [len(ids), vocabulary]: for each token, those of the next one.
        """
        if self._flat:
            how = self._pass([row])
            return _on_host(self._flat.prefill(row, ids, start, every=True, how=how))
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
        rows = list(range(len(ids)))
        if self._flat:
            return _on_host(self._flat.decode(ids, lengths, how=self._pass(rows)))
        positions = self._torch.tensor(lengths)[:, None] - 1
        return self._run(rows, [[i] for i in ids], positions, max(lengths))[:, 0]

    def read(self, row: int, ids: Sequence[int], start: int) -> GpuLogits:
        """See GpuModelRunner.read."""
        assert self._flat
        how = self._pass([row])
        return GpuLogits(self._flat.prefill(row, ids, start, every=False, how=how))

    def advance(self, ids: "Sequence[int] | torch.Tensor", lengths: Sequence[int]) -> GpuLogits:
        """See GpuModelRunner.advance."""
        assert self._flat
        return GpuLogits(self._flat.decode(ids, lengths, how=self._pass(range(len(ids)))))

    def move(self, source: int, target: int, length: int) -> None:
        """Copy a sequence of `length` tokens to another row."""
        if self._flat:
            self._flat.cache.move(source, target, length)
        elif self._cache:
            for buffer in (*self._cache.keys, *self._cache.values):
                buffer[target, :, :length] = buffer[source, :, :length]

    def _run(
        self, rows: Sequence[int], ids: list[list[int]], positions: "torch.Tensor", longest: int
    ) -> "NDArray[np.float32]":
        torch, device = self._torch, self._model.device
        positions = positions.to(device)
        assert self._cache
        mask = self._masks.of(positions, longest, self._model.dtype)
        self._cache.aim(rows, positions, longest)
        with torch.inference_mode():
            output = self._model(
                input_ids=torch.tensor(ids, device=device),
                position_ids=positions,
                attention_mask=mask,
                past_key_values=self._cache,
                use_cache=True,
                **self._options(rows),
            )
            return output.logits.float().cpu().numpy()

    def _options(self, rows: Sequence[int]) -> dict[str, Any]:
        """Further arguments of a forward pass over these rows."""
        return {}

    def _pass(self, rows: Sequence[int]) -> Pass:
        return Pass(self._model, self._options(rows))


def _on_host(logits: "torch.Tensor") -> "NDArray[np.float32]":
    return logits.float().cpu().numpy()


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


class _Masks:
    """Which tokens each token attends to, as a model's layers take it.

    Args:
        model: transformers' model. max_seq_len: of the longest sequence.

    Raises:
        DataError: the model's attention is of a kind whose mask is not known here, within sequences
            of that length.
    """

    def __init__(self, folder: Path, model: Any, max_seq_len: int) -> None:
        config = model.config
        kinds = getattr(config, "layer_types", None)
        window = getattr(config, "sliding_window", None)
        self._window = window if window is not None and window < max_seq_len else None
        # Models in which only some layers have a window list the kind of each layer, and take a
        # mask for each kind; others take one mask.
        self._by_kind = kinds is not None and "sliding_attention" in kinds
        if kinds is not None and not self._by_kind:
            self._window = None
        # "eager" adds the mask to the scores. Models that do not let others replace their attention
        # expect such a mask on a GPU, whichever implementation they have.
        replaceable = getattr(model, "_supports_attention_backend", False)
        self._added = config._attn_implementation == "eager" or not replaceable
        chunk = getattr(config, "attention_chunk_size", None)
        if chunk is not None and chunk < max_seq_len and "chunked_attention" in (kinds or ()):
            raise DataError(
                f"{folder}: attention reaches back {chunk} tokens, in chunks, and engine.name=hf "
                f"is correct only within one: set engine.max_seq_len={chunk}, or serve it with "
                "engine.name=vllm"
            )
        _check_rope(folder, config, max_seq_len)

    def of(self, positions: "torch.Tensor", longest: int, dtype: "torch.dtype") -> Any:
        """The argument `attention_mask` for tokens at positions [rows, tokens].

        longest: keys in the cache. Each token attends to those of its own row up to itself.
        """
        import torch

        keys = torch.arange(longest, device=positions.device)
        seen = keys <= positions[:, :, None]
        near = (
            seen if self._window is None else seen & (keys > positions[:, :, None] - self._window)
        )
        if not self._by_kind:
            return self._form(near, dtype)
        full, sliding = self._form(seen, dtype), self._form(near, dtype)
        return {"full_attention": full, "sliding_attention": sliding}

    def _form(self, mask: "torch.Tensor", dtype: "torch.dtype") -> "torch.Tensor":
        import torch

        mask = mask[:, None]
        if not self._added:
            return mask
        hidden = torch.finfo(dtype).min
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, hidden)


def _check_rope(folder: Path, config: Any, max_seq_len: int) -> None:
    """Refuse sequences for which transformers changes the rotary frequencies of a whole batch."""
    scaling = getattr(config, "rope_scaling", None) or {}
    if scaling.get("rope_type", scaling.get("type")) != "longrope":
        return
    original = getattr(config, "original_max_position_embeddings", None)
    if original is not None and max_seq_len > original:
        raise DataError(
            f"{folder}: beyond {original} tokens transformers rotates all sequences of a batch "
            "with other frequencies, so one request would change another's answer: set "
            f"engine.max_seq_len={original}, or serve it with engine.name=vllm"
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
