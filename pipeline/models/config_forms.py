"""config.json and tokenizer_config.json in the form that the pinned transformers reads.

    plain_config(file, config)        # as transformers 4 writes it, whichever version wrote it
    plain_tokenizer(options)          # likewise of tokenizer_config.json

transformers 5 keeps rotary settings in `rope_parameters`, by layer type in some models, and
special tokens in `extra_special_tokens`. transformers 4.57 would take defaults in their place and
say nothing. Knows no family.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.core.errors import DataError, shown

Json = Mapping[str, Any]

LAYER_TYPES = ("full_attention", "sliding_attention")
# Of rope_parameters: where transformers 4 reads them, beside rope_scaling.
_TOP_LEVEL = ("rope_theta", "partial_rotary_factor")
# Names that transformers 5 has for the classes behind tokenizer.json; 4 knows the other name.
_TOKENIZER_CLASSES = ("TokenizersBackend", "SentencePieceBackend", "PythonBackend")
_TOKENIZER_CLASS = "PreTrainedTokenizerFast"


def plain_config(file: Path, config: Json) -> dict[str, Any]:
    """A config.json with rotary settings where transformers 4 reads them.

    file: its path, for errors.

    Raises:
        DataError: rope_parameters is not an object, is of a kind that transformers 4 cannot
            express, or disagrees with a setting at the top level.
    """
    plain = {name: value for name, value in config.items() if name != "rope_parameters"}
    given = config.get("rope_parameters")
    if given is None:
        return plain
    if not isinstance(given, Mapping):
        raise DataError(
            f"{file}: rope_parameters={given!r:.80} should be an object: save the model again"
        )
    for name, value in _flat(file, given).items():
        if plain.get(name) is not None and plain[name] != value:
            raise DataError(
                f"{file}: {name}={shown(plain[name])} and rope_parameters, which says "
                f"{shown(value)}, disagree: remove one"
            )
        plain[name] = value
    return plain


def _flat(file: Path, given: Json) -> dict[str, Any]:
    """The settings at the top level that say what rope_parameters says."""
    by_type = {name: value for name, value in given.items() if name in LAYER_TYPES}
    if not by_type:
        return _one(file, given)
    for name, value in given.items():
        if name not in LAYER_TYPES or not isinstance(value, Mapping):
            raise DataError(
                f"{file}: rope_parameters has {name!r:.80} beside layer types, of which "
                f"{' and '.join(LAYER_TYPES)} are supported: use another model"
            )
    kinds = [_one(file, value) for value in by_type.values()]
    if all(kind == kinds[0] for kind in kinds):
        return kinds[0]
    # Two kinds, as Gemma 3 has them: its windowed layers have a base of their own and no scaling.
    full, windowed = _one(file, by_type["full_attention"]), _one(file, by_type["sliding_attention"])
    local = windowed.pop("rope_theta", None)
    if any(value is not None for value in windowed.values()):
        raise DataError(
            f"{file}: rope_parameters.sliding_attention scales its positions, which transformers "
            "4.57 cannot: use a model whose windowed layers have the default rope_type"
        )
    return {**full, "rope_local_base_freq": local}


def _one(file: Path, given: Json) -> dict[str, Any]:
    """The same of one kind of layer."""
    kind = given.get("rope_type", given.get("type", "default"))
    if "type" in given and given["type"] != kind:
        raise DataError(
            f"{file}: rope_parameters.rope_type={kind!r:.80} and type={given['type']!r:.80} "
            "disagree: remove one"
        )
    flat = {name: given[name] for name in _TOP_LEVEL if given.get(name) is not None}
    scaling = {
        name: value
        for name, value in given.items()
        if name not in (*_TOP_LEVEL, "type") and value is not None
    }
    flat["rope_scaling"] = None if kind == "default" else {**scaling, "rope_type": kind}
    if kind == "longrope" and "original_max_position_embeddings" in scaling:
        original = "original_max_position_embeddings"  # Phi 3's, which 4.57 reads at the top level
        flat[original] = scaling[original]
    return flat


def plain_tokenizer(options: Json) -> dict[str, Any]:
    """A tokenizer_config.json with class and special tokens by the names of transformers 4."""
    plain = dict(options)
    if plain.get("tokenizer_class") in _TOKENIZER_CLASSES:
        plain["tokenizer_class"] = _TOKENIZER_CLASS
    extra = plain.get("extra_special_tokens")
    if isinstance(extra, list):  # a mapping, of attribute to token, is the same in both versions
        del plain["extra_special_tokens"]
        known = plain.get("additional_special_tokens") or []
        plain["additional_special_tokens"] = [*known, *(t for t in extra if t not in known)]
    return plain


def extra_tokens(options: Json) -> list[Any]:
    """The special tokens of tokenizer_config.json that have no role of their own, as it has them.

    Raises:
        TypeError: they are in neither a list nor a mapping.
    """
    plain = plain_tokenizer(options)
    extra = plain.get("extra_special_tokens") or {}
    if not isinstance(extra, Mapping):
        raise TypeError(f"extra_special_tokens={shown(extra)} is neither a list nor an object")
    return [*(plain.get("additional_special_tokens") or []), *extra.values()]
