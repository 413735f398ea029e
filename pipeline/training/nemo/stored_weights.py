"""The weights of a checkpoint that others wrote, in each format that Megatron-Core had.

    weights = stored_weights(checkpoint)      # what is stored: names, sizes and types
    weights.read(names)                       # the tensors

`torch_dist` is read by torch's reader for plain tensors, from an index that checkpoint_index
parses. `zarr` is read by this module: a folder for each tensor, whose chunks are plain bytes. What
is no tensor is never read.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import ArtifactError, DataError
from pipeline.training.nemo import archives
from pipeline.training.nemo.checkpoint_index import INDEX, read_index

if TYPE_CHECKING:
    import torch

EMBEDDING = "embedding.word_embeddings.weight"  # behind the prefix of all names
_TYPES = {"bfloat16": "bfloat16", "<f4": "float32", "<f2": "float16"}  # zarr's name → torch's
_WHOLE = "give a whole checkpoint"


@dataclass(frozen=True)
class StoredWeights:
    """Tensors of a checkpoint. tensors: size and type by name. read: the tensors of some names."""

    folder: Path
    tensors: Mapping[str, tuple[tuple[int, ...], torch.dtype]]
    read: Callable[[Sequence[str]], dict[str, torch.Tensor]]

    @property
    def prefix(self) -> str:
        """What every name of a language model begins with; "" if it is none."""
        found = (n.removesuffix(EMBEDDING) for n in self.tensors if n.endswith(f".{EMBEDDING}"))
        return next(found, "")


def stored_weights(checkpoint: Path) -> StoredWeights:
    """What a checkpoint's weights are, without reading them.

    Raises:
        DataError: they are not there, damaged, or in another format.
    """
    weights = checkpoint / "weights"
    if not weights.is_dir():
        weights = checkpoint / archives.WEIGHTS
    if not weights.is_dir():
        raise DataError(
            f"{checkpoint} has no {archives.WEIGHTS}/: its weights are pickles of NeMo before "
            "Megatron-Core, which are never read here: save it again with a later NeMo 1, where "
            "you trust it"
        )
    file = weights / "metadata.json"
    try:
        form = json.loads(file.read_text())["sharded_backend"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} cannot be read: {_WHOLE} of NeMo") from error
    if form == "zarr":
        return _zarr(weights)
    if form != "torch_dist":
        raise DataError(
            f"{weights} is in the format {form!r:.40}, and torch_dist and zarr are read: load it "
            "with NeMo, and save it again"
        )
    return _torch_dist(weights)


def _torch_dist(weights: Path) -> StoredWeights:
    import torch
    from torch.distributed.checkpoint import FileSystemReader, load
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    from pipeline.training.nemo.patches.checkpoint_safety import one_line_refusals

    try:
        index = read_index(weights / INDEX, _WHOLE, others=True)
    except ArtifactError as error:
        raise DataError(str(error)) from error
    stored = {
        name: (tuple(entry.size), entry.properties.dtype)
        for name, entry in index.state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata)
    }

    class Reader(FileSystemReader):
        def read_metadata(self, *arguments: Any, **options: Any) -> Any:
            index.storage_meta.load_id = self.load_id
            return index

    def read(names: Sequence[str]) -> dict[str, torch.Tensor]:
        tensors = {name: torch.empty(stored[name][0], dtype=stored[name][1]) for name in names}
        with one_line_refusals(weights.parent):
            load(tensors, storage_reader=Reader(weights), no_dist=True)
        return tensors

    return StoredWeights(weights, stored, read)


def _zarr(weights: Path) -> StoredWeights:
    import torch

    described = {
        folder.name: _described(folder / ".zarray")
        for folder in sorted(weights.iterdir())
        if (folder / ".zarray").is_file()
    }
    stored = {
        name: (found["shape"], getattr(torch, _TYPES[found["dtype"]]))
        for name, found in described.items()
    }

    def read(names: Sequence[str]) -> dict[str, torch.Tensor]:
        return {
            name: _joined(weights / name, described[name]["chunks"], *stored[name])
            for name in names
        }

    return StoredWeights(weights, stored, read)


def _described(file: Path) -> dict[str, Any]:
    """A tensor's .zarray: its shape, chunks and dtype.

    Raises:
        DataError: it cannot be read, or its chunks are more than plain bytes.
    """
    try:
        found = json.loads(file.read_text())
        plain = (found["compressor"], found.get("filters"), found["order"]) == (None, None, "C")
        sizes = [tuple(found[name]) for name in ("shape", "chunks")]
        whole = all(type(n) is int and 0 < n < 2**40 for size in sizes for n in size)
        if plain and whole and len(sizes[0]) == len(sizes[1]) and found["dtype"] in _TYPES:
            return {**found, "shape": sizes[0], "chunks": sizes[1]}
        cause = "compressed, or of another type"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        cause = type(error).__name__
    raise DataError(
        f"{file} does not describe plain numbers ({cause}): load the checkpoint with NeMo, and "
        "save it again as torch_dist"
    )


def _joined(
    folder: Path, chunks: tuple[int, ...], size: tuple[int, ...], dtype: torch.dtype
) -> torch.Tensor:
    """A tensor of its chunks, each whole even where it reaches beyond the tensor.

    Raises:
        DataError: a chunk is missing or has another size.
    """
    import torch

    tensor = torch.empty(size, dtype=dtype)
    counts = [math.ceil(n / chunk) for n, chunk in zip(size, chunks, strict=True)]
    for place in itertools.product(*map(range, counts)):
        file = folder / ".".join(map(str, place))
        try:
            content = bytearray(file.read_bytes())
        except OSError as error:
            raise DataError(f"{file} cannot be read ({error.strerror}): {_WHOLE}") from error
        if len(content) != math.prod(chunks) * dtype.itemsize:
            raise DataError(f"{file} has {len(content)} bytes, and not those of a chunk: {_WHOLE}")
        chunk = torch.frombuffer(content, dtype=dtype).reshape(chunks)
        begins = [at * length for at, length in zip(place, chunks, strict=True)]
        into = tensor[tuple(map(slice, begins, map(sum, zip(begins, chunks, strict=True))))]
        into.copy_(chunk[tuple(slice(n) for n in into.shape)])
    return tensor
