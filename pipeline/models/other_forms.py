"""Checkpoints of other kinds, which `model.path` may name: what each is, and what to do with it."""

from __future__ import annotations

from pathlib import Path

ARCHIVE_DESCRIPTION = "model_config.yaml"  # of an archive of NeMo 1.0
ARCHIVE_WEIGHTS = "model_weights"


def is_nemo(place: Path) -> bool:
    """Whether a place holds a checkpoint of NeMo 2.0, or an archive of NeMo 1.0, packed or not.

    Looks at names alone: nothing of it is opened.
    """
    if place.suffix == ".nemo" and place.is_file():
        return True
    if (place / "weights").is_dir() and (place / "context").is_dir():
        return True
    return (place / ARCHIVE_DESCRIPTION).is_file() and not (place / "config.json").is_file()


def other_form(place: Path) -> str:
    """What a place holds in place of an HF folder, and the way to one; "" if it is nothing known.

    Looks at names alone: nothing of it is opened.
    """
    if is_nemo(place):
        return (
            f"{place} is a checkpoint of NeMo: run `python -m pipeline.training.from_nemo {place} "
            "FOLDER`, which writes a Hugging Face folder that computes the same, and give "
            "model.path=FOLDER"
        )
    if (place / "config.json").is_file() and (place / "rank0.safetensors").is_file():
        return (
            f"{place} is a TensorRT-LLM checkpoint (qnemo), whose weights are made for an engine "
            "and cannot be trained: give the Hugging Face folder that it was made from"
        )
    return ""
