"""Whether an HF model folder can be used, before anything heavy is imported.

`check_folder` refuses what would fail in a later stage: an unknown architecture, quantized weights,
custom code, missing or truncated weights, a tokenizer that disagrees with the embeddings. Reads no
weights, and imports neither torch nor a vendor's library.
"""

from __future__ import annotations

from pathlib import Path

from pipeline.core.errors import DataError
from pipeline.models.architecture import EMBEDDING, LM_HEAD, Shape, read_shape
from pipeline.models.files import (
    WEIGHTS_INDEX,
    Stored,
    check_no_state,
    read_json,
    stored_tensors,
    tensor_place,
    weight_files,
)
from pipeline.models.tokenizer_checks import check_tokenizer

_PART = 2**22  # bytes that are compared at once
_FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")


def check_folder(folder: Path) -> Shape:
    """Refuse an HF folder that cannot be imported; return the sizes of its model.

    Raises:
        DataError: names the file, what is wrong with it and how to fix it.
    """
    shape = read_shape(folder)
    _check_nothing_beside(folder)
    _check_tensors(folder, shape)
    check_tokenizer(folder, shape)
    return shape


def _check_nothing_beside(folder: Path) -> None:
    """Refuse what transformers loads beside the weights, and nothing else does.

    Other leftovers of training and exports (training_args.bin, optimizer.pt, GGUF ...) are never
    read.
    """
    check_no_state(folder)
    file = folder / "adapter_config.json"
    if file.is_file():  # it would be loaded on top of the model that it names
        raise DataError(
            f"{file} makes the folder a LoRA adapter as well as a model: merge the adapter into "
            "the model (PEFT's merge_and_unload), or move the adapter's files to another folder"
        )


def _check_tensors(folder: Path, shape: Shape) -> None:
    found: dict[str, tuple[Stored, Path]] = {}
    for file in weight_files(folder):
        for name, stored in stored_tensors(file).items():
            if name in found:
                raise DataError(
                    f"{file}: {name} is in {found[name][1].name}, too, and one model has one of "
                    "each: download the weights again"
                )
            found[name] = stored, file
    index = folder / WEIGHTS_INDEX
    if index.is_file() and not isinstance(read_json(index, "correct it").get("metadata"), dict):
        raise DataError(f'{index} has no metadata, which transformers reads: add "metadata": {{}}')
    embedding = found.get(EMBEDDING)
    for name, expected in shape.tensors():
        if name not in found:
            raise DataError(
                f"{folder} has no tensor {name}, which its config.json requires: "
                "the weights are incomplete or of another model; download them again"
            )
        stored, file = found.pop(name)
        if stored.dtype not in _FLOATS:
            raise DataError(
                f"{file}: {name} has type {stored.dtype}, and weights must be floating point "
                "numbers: use the model before it was quantized"
            )
        if stored.shape != expected:
            raise DataError(
                f"{file}: {name} is {list(stored.shape)} and config.json requires "
                f"{list(expected)}: config.json and the weights are of different models"
            )
    if embedding and LM_HEAD in found and not _same(embedding, EMBEDDING, found[LM_HEAD], LM_HEAD):
        raise DataError(
            f"{found[LM_HEAD][1]}: {LM_HEAD} is not the embedding, though config.json says so with "
            "tie_word_embeddings=true, and would be ignored: set it to false, or remove the tensor"
        )
    # A tied model may carry the output layer a second time; old ones carry the inverse frequencies.
    unknown = [n for n in found if n != LM_HEAD and not n.endswith("rotary_emb.inv_freq")]
    if unknown:
        raise DataError(
            f"{found[unknown[0]][1]}: tensor {unknown[0]} is not part of {shape.family}"
            f"{f' (and {len(unknown) - 1} more)' if len(unknown) > 1 else ''}: "
            "config.json and the weights are of different models"
        )


def _same(one: tuple[Stored, Path], name: str, other: tuple[Stored, Path], its_name: str) -> bool:
    """Whether two tensors have the same type, shape and bytes."""
    if one[0] != other[0]:
        return False
    with one[1].open("rb") as first, other[1].open("rb") as second:
        begin, end = tensor_place(one[1], name)
        first.seek(begin)
        second.seek(tensor_place(other[1], its_name)[0])
        left = end - begin
        while left:
            part = first.read(min(left, _PART))
            if not part or part != second.read(len(part)):
                return False
            left -= len(part)
    return True
