"""Weights are found, linked and copied; tokenizer files byte for byte."""

import json
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from pipeline.models.files import (
    clear,
    copy_assets,
    link_weights,
    tensor_shapes,
    weight_files,
)
from tests.unit.model_folders import add_weights, make_model_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return add_weights(make_model_folder(tmp_path / "model", "demo"))


def test_shards_are_found_through_the_index(folder: Path) -> None:
    whole = load_file(folder / "model.safetensors")
    names = sorted(whole)
    parts = {"a.safetensors": names[:4], "b.safetensors": names[4:]}
    for file, part in parts.items():
        save_file({name: whole[name] for name in part}, folder / file)
    (folder / "model.safetensors").unlink()
    weight_map = {name: file for file, part in parts.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert weight_files(folder) == [folder / "a.safetensors", folder / "b.safetensors"]


def test_assets_are_copied_without_weights(folder: Path, tmp_path: Path) -> None:
    copy_assets(folder, tmp_path / "copy")
    copied = {file.name for file in (tmp_path / "copy").iterdir()}
    assert copied == {"config.json", "tokenizer.json", "tokenizer_config.json"}
    assert (tmp_path / "copy/config.json").read_bytes() == (folder / "config.json").read_bytes()


def test_linked_weights_take_no_room_and_are_the_same(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for _ in range(2):  # what an interrupted run left is replaced
        names = link_weights(folder, copy)
    assert (copy / "model.safetensors").samefile(folder / "model.safetensors")
    assert names == dict.fromkeys(tensor_shapes(folder / "model.safetensors"), "model.safetensors")


def test_weights_are_copied_to_a_disk_that_takes_no_links(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*paths: Path) -> None:
        raise OSError("Invalid cross-device link")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    link_weights(folder, tmp_path)
    assert not (tmp_path / "model.safetensors").samefile(folder / "model.safetensors")
    written, source = (f / "model.safetensors" for f in (tmp_path, folder))
    assert written.read_bytes() == source.read_bytes()


def test_clear_leaves_an_empty_folder(folder: Path) -> None:
    (folder / "weights" / "deep").mkdir(parents=True)
    clear(folder)
    assert list(folder.iterdir()) == []
