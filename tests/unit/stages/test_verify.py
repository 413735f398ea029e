"""stage=verify: every byte is read, and what artifacts were made from is compared."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.core.artifact import note_verified, open_artifact, write_manifest
from pipeline.core.errors import ArtifactError
from pipeline.stages import verify
from tests.made_artifacts import make_artifact, make_chain


def run(folder: Path) -> None:
    config: Any = SimpleNamespace(artifacts=folder)
    verify.run(config)


def test_a_whole_chain_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = make_chain(tmp_path)
    run(tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert sum("whole" in line for line in lines) == len(made)


def test_a_byte_that_changed_without_its_times_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = make_chain(tmp_path)
    with (tmp_path / "build" / "model.onnx").open("r+b") as stream:
        stream.seek(1000)
        stream.write(b"1")
    note_verified(tmp_path / "build", made["build"].manifest)
    open_artifact(tmp_path / "build")
    with pytest.raises(ArtifactError, match=r"1 of 9 artifacts .* build") as refused:
        run(tmp_path)
    assert refused.value.exit_code == 4
    assert "model.onnx was altered" in " ".join(capsys.readouterr().out.split())


def test_what_has_no_manifest_any_more_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_chain(tmp_path)
    make_chain(tmp_path / "sweeps/night/0")
    (tmp_path / "merge/manifest.json").unlink()
    (tmp_path / "sweeps/night/0/export/data.txt").write_text("another")
    with pytest.raises(ArtifactError, match=r"2 of 18 .*: merge, sweeps/night/0/export"):
        run(tmp_path)
    out = " ".join(capsys.readouterr().out.split())
    assert "merge has no manifest.json" in out
    assert "made from merge, not whole or not there" in out


def test_a_manifest_that_was_edited_and_sealed_again_is_found_by_its_users(tmp_path: Path) -> None:
    """The artifacts that were made from it recorded its seal."""
    make_chain(tmp_path)
    manifest = open_artifact(tmp_path / "prepare").manifest
    write_manifest(tmp_path / "prepare", replace(manifest, metrics={"rows/train": 9e9}))
    open_artifact(tmp_path / "prepare")
    with pytest.raises(ArtifactError, match="finetune"):
        run(tmp_path)


def test_an_input_that_was_made_again_is_a_note(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = make_chain(tmp_path)
    make_artifact(tmp_path, "merge", "hf_checkpoint", inputs={"import": made["import"]},
                  files={"data.txt": "another"})  # fmt: skip
    run(tmp_path)
    out = " ".join(capsys.readouterr().out.split())
    assert "made from another merge than the one that is there" in out


def test_no_artifacts_are_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="has no artifact"):
        run(tmp_path)
