"""The files of an HF model folder: find, link and copy them, and read their headers.

    weight_files(folder); tensor_shapes(file); copy_assets(folder, target)

Reads no weights.
"""

import json
import math
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.core.errors import DataError
from pipeline.models.config_forms import plain_config, plain_tokenizer

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
MODELOPT_STATE = "modelopt_state.pth"  # ModelOpt's name
CONFIGS = ("config.json", "generation_config.json")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
)

# Bits of an element, by the names that safetensors has for them.
_BITS = {
    name: bits
    for bits, names in (
        (4, "F4"),
        (6, "F6_E2M3 F6_E3M2"),
        (8, "BOOL U8 I8 F8_E4M3 F8_E5M2 F8_E8M0 F8_E4M3FNUZ F8_E5M2FNUZ"),
        (16, "U16 I16 F16 BF16"),
        (32, "U32 I32 F32"),
        (64, "U64 I64 F64 C64"),
    )
    for name in names.split()
}
_HEADER_LIMIT = 2**25  # bytes of a safetensors header; 10,000 tensors take 2 MB
_JSON_LIMIT = 2**27  # bytes; the largest published tokenizer.json has 33 MB


@dataclass(frozen=True)
class Stored:
    """A tensor as a safetensors header describes it. dtype: its name there, as F32 or BF16."""

    dtype: str
    shape: tuple[int, ...]


def read_json(file: Path, remedy: str) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        DataError: the file is missing or does not hold a JSON object; ends with `remedy`.
    """
    if not file.exists():
        raise DataError(f"{file} does not exist: {remedy}")
    if not file.is_file():  # a pipe would be waited for
        raise DataError(f"{file} is not a file: {remedy}")
    try:
        if file.stat().st_size > _JSON_LIMIT:
            raise DataError(f"{file} has over {_JSON_LIMIT // 2**20} MiB: {remedy}")
        value = json.loads(file.read_text(encoding="utf-8"))
    except RecursionError:
        raise DataError(f"{file} cannot be read (it is nested too deep): {remedy}") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read ({error}): {remedy}") from error
    if not isinstance(value, dict):
        raise DataError(f"{file} does not hold a JSON object: {remedy}")
    return value


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model, in the index's order.

    Raises:
        DataError: there are none, or the index names a file that is not there.
    """
    single, index = folder / WEIGHTS, folder / WEIGHTS_INDEX
    if not index.is_file():
        if single.is_file():
            return [single]
        raise DataError(f"{single} does not exist: {_instead_of_weights(folder)}")
    names = read_json(index, "download the model again").get("weight_map")
    if not isinstance(names, dict) or not names:
        raise DataError(f"{index} has no weight_map: download the model again")
    for tensor, name in names.items():
        if not isinstance(name, str):
            raise DataError(
                f"{index}: weight_map has {name!r} for {tensor}, which should be a file's name: "
                "download the model again"
            )
    files = [folder / name for name in sorted(set(names.values()))]
    for file in files:
        if file.parent != folder or not file.is_file():
            raise DataError(f"{file} does not exist though {index.name} names it: download it")
    if single.is_file() and single not in files:
        raise DataError(
            f"{folder} holds {WEIGHTS}, and {WEIGHTS_INDEX} names other files: which of them are "
            "the model is not clear; move the ones of an earlier save to another folder"
        )
    return files


# Weights that are not read, by the ending of their names, and what to do with a folder of them.
_OTHER_WEIGHTS = (
    (
        ("bin", "pt", "pth", "ckpt", "pkl"),
        "is a pickle, which can run code when it is read: only safetensors weights are read; save "
        "the model with save_pretrained(folder, safe_serialization=True)",
    ),
    (
        ("gguf",),
        "holds weights for llama.cpp: only safetensors weights are read; use the folder that it "
        "was made from, which the model's card names",
    ),
    (
        ("onnx",),
        "is an exported graph: only safetensors weights are read; use the folder that it was made "
        "from",
    ),
)


def _instead_of_weights(folder: Path) -> str:
    """What a folder without safetensors weights holds, and what to do."""
    if (folder / "adapter_model.safetensors").is_file():
        return (
            f"{folder / 'adapter_model.safetensors'} is an adapter without its model: merge it "
            "into its base first (PEFT's merge_and_unload), or give the base's folder"
        )
    for endings, text in _OTHER_WEIGHTS:
        for file in sorted(folder.iterdir()) if folder.is_dir() else ():
            if file.suffix.removeprefix(".") in endings:
                return f"{file.name} {text}"
    return (
        "only safetensors weights are read; save the model with "
        "save_pretrained(folder, safe_serialization=True)"
    )


def check_no_state(folder: Path) -> None:
    """Refuse the state of ModelOpt beside a model that is read as it is.

    Raises:
        DataError: it is there.
    """
    state = folder / MODELOPT_STATE
    if state.exists():
        raise DataError(
            f"{state} is the state of a quantized model, and this one is read as it is: remove the "
            "file, or give the folder of the model before it was quantized"
        )


def tensor_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes in a safetensors file; as `stored_tensors`."""
    return {name: stored.shape for name, stored in stored_tensors(file).items()}


def stored_tensors(file: Path) -> dict[str, Stored]:
    """The tensors in a safetensors file by name, from its header alone.

    Raises:
        DataError: the header is not a safetensors header, the file is shorter than the header
            says, or the tensors do not follow one another without gaps.
    """
    remedy = "download or save the file again"
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 2 <= length <= min(size - 8, _HEADER_LIMIT):
            raise DataError(f"{file} is not a safetensors file, or was cut short: {remedy}")
        try:
            header = json.loads(stream.read(length))
            tensors = {n: t for n, t in header.items() if n != "__metadata__"}
            for described in tensors.values():
                _check_whole((*described["data_offsets"], *described["shape"]))
            places = sorted((*t["data_offsets"], n) for n, t in tensors.items())
            found = {n: Stored(t["dtype"], tuple(t["shape"])) for n, t in tensors.items()}
            end = 0
            for begin, stop, name in places:
                _check_place(name, found[name], begin - end, stop - begin)
                end = stop
        except RecursionError:
            raise DataError(f"{file} has a damaged header (nested too deep): {remedy}") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{file} has a damaged header ({error}): {remedy}") from error
    if size != 8 + length + end:
        raise DataError(f"{file} holds {size} bytes and should hold {8 + length + end}: {remedy}")
    return found


def tensor_place(file: Path, name: str) -> tuple[int, int]:
    """The first byte of a tensor in a safetensors file that `stored_tensors` read, and the one
    behind its last."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        begin, end = json.loads(stream.read(length))[name]["data_offsets"]
    return 8 + length + begin, 8 + length + end


def _check_whole(numbers: Iterable[object]) -> None:
    for number in numbers:
        if type(number) is not int or number < 0:
            raise ValueError(f"{number!r} is no size")


def _check_place(name: str, stored: Stored, gap: int, length: int) -> None:
    """Refuse what safetensors would refuse. gap: bytes between this tensor and the previous one."""
    if stored.dtype not in _BITS:
        raise ValueError(f"{name} has the unknown dtype {stored.dtype}")
    bits = math.prod(stored.shape) * _BITS[stored.dtype]
    if gap or 8 * length != bits:
        raise ValueError(
            f"data_offsets of {name} do not follow the tensor before it, or are not the "
            f"{bits // 8} bytes of {stored.dtype} {list(stored.shape)}"
        )


def copy_assets(source: Path, target: Path) -> None:
    """Copy the configuration and tokenizer files; no weights."""
    target.mkdir(parents=True, exist_ok=True)
    for name in (*CONFIGS, *TOKENIZER_FILES):
        if (source / name).is_file():
            copy_asset(source / name, target / name)


def copy_asset(source: Path, target: Path) -> None:
    """Copy a file of a model's folder: byte for byte, unless transformers 4 reads another form.

    Later stages, and the runtimes that open what they write, then find one form only.
    """
    if source.name == "chat_template.json":
        _copy_processor_template(source, target)
    elif plain := _plain(source):
        text = json.dumps(plain, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        target.write_text(text, encoding="utf-8")
    else:
        target.write_bytes(source.read_bytes())


def _copy_processor_template(source: Path, target: Path) -> None:
    """Write the chat template of a processor, where it is the only one, as a tokenizer's: those who
    load the tokenizer alone do not read the processor's."""
    remedy = "save the model again with transformers"
    options = source.with_name("tokenizer_config.json")
    if source.with_name("chat_template.jinja").is_file():
        return
    if options.is_file() and read_json(options, remedy).get("chat_template"):
        return
    template = read_json(source, remedy).get("chat_template")
    if isinstance(template, str):
        target.with_name("chat_template.jinja").write_text(template, encoding="utf-8")


def _plain(file: Path) -> dict[str, Any] | None:
    """The other form of a file's content; None if it has that form already."""
    if file.name not in ("config.json", "tokenizer_config.json"):
        return None
    content = read_json(file, "save the model again with transformers")
    changed = (
        plain_config(file, content) if file.name == "config.json" else plain_tokenizer(content)
    )
    return None if changed == content else changed


def link_weights(source: Path, target: Path, prefix: str = "") -> dict[str, str]:
    """Link the weight files of a folder into another one, or copy them to another disk.

    prefix: added to their names in `target`. Returns the file of each tensor, as an index does.
    """
    found: dict[str, str] = {}
    for file in weight_files(source):
        place = target / f"{prefix}{file.name}"
        place.unlink(missing_ok=True)
        try:
            place.hardlink_to(file)
        except OSError:
            shutil.copyfile(file, place)
        found |= dict.fromkeys(tensor_shapes(file), place.name)
    return found


def clear(folder: Path) -> None:
    """Remove what an interrupted run left in a work folder."""
    for leftover in folder.iterdir():
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()
