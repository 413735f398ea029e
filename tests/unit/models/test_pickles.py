"""Pickles in files of torch: tensors and plain values are read, code is not run."""

import os
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline.models.pickles import only_plain_pickles


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


@pytest.mark.parametrize("variable", [None, "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"])
def test_no_argument_and_no_variable_lets_code_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str | None
) -> None:
    if variable:
        monkeypatch.setenv(variable, "1")
    torch.save({"a": torch.ones(2), "b": [1, "x"]}, tmp_path / "plain")
    torch.save(Payload(tmp_path / "ran"), tmp_path / "hostile")
    before = dict(os.environ)
    with only_plain_pickles():
        found = torch.load(tmp_path / "plain", weights_only=False)
        with pytest.raises(pickle.UnpicklingError):
            torch.load(tmp_path / "hostile", weights_only=False)
    assert found["b"] == [1, "x"]
    assert not (tmp_path / "ran").exists()
    assert dict(os.environ) == before


def test_classes_that_libraries_added_are_not_made(tmp_path: Path) -> None:
    torch.save(SimpleNamespace(a=1), tmp_path / "file")
    with torch.serialization.safe_globals([SimpleNamespace]):
        torch.load(tmp_path / "file", weights_only=True)
        with only_plain_pickles(), pytest.raises(pickle.UnpicklingError):
            torch.load(tmp_path / "file", weights_only=True)
        assert SimpleNamespace in torch.serialization.get_safe_globals()
