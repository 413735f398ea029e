"""Checkpoints of other kinds, which `model.path` may name: what each is, and what to do with it."""

from __future__ import annotations

from pathlib import Path


def other_form(place: Path) -> str:
    """What a place holds in place of an HF folder, and the way to one; "" if it is nothing known.

    Looks at names alone: nothing of it is opened.
    """
    if place.suffix == ".nemo" and place.is_file():
        return (
            f"{place} is an archive of NeMo 1.0, whose weights are pickles and are never read "
            "here: convert it to a Hugging Face folder with NeMo's own "
            "scripts/checkpoint_converters, on a machine where you trust it"
        )
    if not place.is_dir():
        return ""
    if (place / "weights").is_dir() and (place / "context").is_dir():
        return (
            f"{place} is a NeMo 2.0 checkpoint: run `python -m pipeline.training.from_nemo {place} "
            "FOLDER`, which writes a Hugging Face folder that computes the same, and give "
            "model.path=FOLDER"
        )
    if (place / "model_config.yaml").is_file() and not (place / "config.json").is_file():
        return (
            f"{place} is an unpacked archive of NeMo 1.0, whose weights are pickles and are never "
            "read here: convert it to a Hugging Face folder with NeMo's own "
            "scripts/checkpoint_converters, on a machine where you trust it"
        )
    if (place / "config.json").is_file() and (place / "rank0.safetensors").is_file():
        return (
            f"{place} is a TensorRT-LLM checkpoint (qnemo), whose weights are made for an engine "
            "and cannot be trained: give the Hugging Face folder that it was made from"
        )
    return ""
