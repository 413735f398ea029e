"""Whether an HF model folder can be used, before anything heavy is imported.

`check_folder` refuses what would fail in a later stage: an unknown architecture, pickled weights,
custom code, missing or truncated weights, a tokenizer that disagrees with the embeddings. Reads no
weights, and imports neither torch nor a vendor's library.
"""

from __future__ import annotations

from pathlib import Path

from pipeline.core.errors import DataError
from pipeline.models.architecture import LM_HEAD, Json, Shape, check_no_code, read_shape
from pipeline.models.files import (
    CONFIGS,
    WEIGHTS_INDEX,
    Stored,
    read_json,
    stored_tensors,
    weight_files,
)

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
_FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")


def check_folder(folder: Path) -> Shape:
    """Refuse an HF folder that cannot be imported; return the sizes of its model.

    Raises:
        DataError: names the file, what is wrong with it and how to fix it.
    """
    shape = read_shape(folder)
    _check_no_pickles(folder)
    _check_tensors(folder, shape)
    _check_tokenizer(folder, shape)
    return shape


def _check_no_pickles(folder: Path) -> None:
    for pattern in _PICKLES:
        for file in sorted(folder.glob(pattern)):
            raise DataError(
                f"{file} is a pickle, which can run code when it is read: keep only safetensors "
                "in the folder (save_pretrained(folder, safe_serialization=True))"
            )


def _check_tensors(folder: Path, shape: Shape) -> None:
    found: dict[str, tuple[Stored, Path]] = {}
    for file in weight_files(folder):
        found |= {name: (stored, file) for name, stored in stored_tensors(file).items()}
    index = folder / WEIGHTS_INDEX
    if index.is_file() and not isinstance(read_json(index, "correct it").get("metadata"), dict):
        raise DataError(f'{index} has no metadata, which transformers reads: add "metadata": {{}}')
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
    # A tied model may carry the output layer a second time; old ones carry the inverse frequencies.
    unknown = [n for n in found if n != LM_HEAD and not n.endswith("rotary_emb.inv_freq")]
    if unknown:
        raise DataError(
            f"{found[unknown[0]][1]}: tensor {unknown[0]} is not part of {shape.family}"
            f"{f' (and {len(unknown) - 1} more)' if len(unknown) > 1 else ''}: "
            "config.json and the weights are of different models"
        )


def _check_tokenizer(folder: Path, shape: Shape) -> None:
    save = "save it with AutoTokenizer.from_pretrained(...).save_pretrained(folder)"
    file = folder / "tokenizer.json"
    tokenizer = read_json(file, save)
    options_file = folder / "tokenizer_config.json"
    options = read_json(options_file, save)
    check_no_code(options_file, options)
    ids = _token_ids(file, tokenizer)
    if not ids:
        raise DataError(f"{file} has an empty vocabulary: {save}")
    token, top = max(ids.items(), key=lambda item: item[1])
    if top >= shape.vocab:
        raise DataError(
            f"{file}: token {token!r} has id {top}, but the model's embedding has {shape.vocab} "
            "rows: use the tokenizer of this model, or enlarge its embedding first"
        )
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        value = options.get(name)
        text = value.get("content", value) if isinstance(value, dict) else value
        if text is not None and not (isinstance(text, str) and text in ids):
            raise DataError(
                f"{options_file}: {name} {text!r} is not in tokenizer.json: correct either file"
            )
    for config_name in CONFIGS:
        _check_special_ids(folder / config_name, shape.vocab)
    if not options.get("chat_template") and not (folder / "chat_template.jinja").is_file():
        raise DataError(
            f"{options_file} has no chat_template and there is no chat_template.jinja beside it: "
            "add the model's own, or one like those in the models' documentation"
        )


def _token_ids(file: Path, tokenizer: Json) -> dict[str, int]:
    """Token text to id, of the model's vocabulary and the added tokens."""
    try:
        vocab = tokenizer["model"]["vocab"]
        # Unigram models hold [text, score] pairs, numbered from 0; the others text to id.
        if isinstance(vocab, list):
            ids = {pair[0]: number for number, pair in enumerate(vocab)}
        else:
            ids = dict(vocab)
        return ids | {t["content"]: t["id"] for t in tokenizer.get("added_tokens", [])}
    except (KeyError, TypeError, IndexError) as error:
        raise DataError(
            f"{file} is not a tokenizers file (no {error}): save it again with transformers"
        ) from error


def _check_special_ids(file: Path, rows: int) -> None:
    if not file.is_file():
        return
    config = read_json(file, "save it again with transformers")
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = config.get(name)
        for token in value if isinstance(value, list) else [value]:
            if token is None or token == -1:  # the latter is the old way to write "none"
                continue
            if not isinstance(token, int) or isinstance(token, bool):
                raise DataError(f"{file}: {name}={token!r} should be a token's number: correct it")
            if not 0 <= token < rows:
                raise DataError(
                    f"{file}: {name}={token} is outside the embedding's {rows} rows: correct it"
                )
