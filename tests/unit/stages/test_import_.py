"""What import refuses, it refuses before NeMo is imported."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.core.errors import DataError
from pipeline.stages import import_
from tests.unit.model_folders import add_weights, make_model_folder


def config(folder: Path) -> Any:
    return SimpleNamespace(model=SimpleNamespace(path=folder, name="m", dtype="bfloat16"))


def test_a_bad_folder_is_refused_without_nemo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("nemo", "megatron", "pipeline.training.nemo.models", "pipeline.models.hf_model"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it would be an ImportError
    folder = add_weights(make_model_folder(tmp_path / "model", "demo"))
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    out = tmp_path / "out"
    out.mkdir()
    (out / "leftover").touch()
    with pytest.raises(DataError, match="is a pickle"):
        import_.run(config(folder), {}, out)
    assert (out / "leftover").exists()  # nothing was begun
