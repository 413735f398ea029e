"""Artifacts: whole, altered, half-written; the manifest as the truth."""

import json
import os
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core import artifact
from pipeline.core.artifact import Manifest, open_artifact, write_manifest
from pipeline.core.errors import ArtifactError


def make(folder, files=None, **fields):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (files or {"weights/a.bin": b"1234", "config.json": b"{}"}).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    values = {
        "kind": "dataset",
        "stage": "prepare",
        "fingerprint": "f" * 64,
        "config": {"seed": 1},
        "inputs": {},
        "input_seals": {},
        "files": artifact.hash_files(folder),
        "metrics": {"rows": 3.0},
        "proof": {},
        "failure": None,
        "versions": {"stage": 1},
        "libraries": {},
        "code": {},
        "environment": {},
        "seconds": 1.0,
        "peak_memory_bytes": 1,
        "created": "2026-01-01T00:00:00+00:00",
    }
    write_manifest(folder, Manifest(**(values | fields)))
    return folder


def test_opens_what_was_written(tmp_path):
    opened = open_artifact(make(tmp_path / "prepare"))
    assert opened.kind == "dataset"
    assert set(opened.manifest.files) == {"weights/a.bin", "config.json"}
    assert opened.manifest.bytes == 6


def test_digest_is_of_the_content_alone(tmp_path):
    first = open_artifact(make(tmp_path / "a" / "prepare")).manifest
    later = open_artifact(make(tmp_path / "b" / "prepare", created="2027", seconds=9.0)).manifest
    assert first.digest == later.digest
    assert first.digest != replace(first, kind="other").digest


@pytest.mark.parametrize("content", [b"1235", b"123", b"12345"])
def test_altered_file_is_refused(tmp_path, content):
    folder = make(tmp_path / "prepare")
    open_artifact(folder)
    (folder / "weights/a.bin").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"a\.bin was altered .*stage=prepare"):
        open_artifact(folder)


def test_missing_file_is_refused(tmp_path):
    folder = make(tmp_path / "prepare")
    (folder / "config.json").unlink()
    with pytest.raises(ArtifactError, match=r"config\.json is missing"):
        open_artifact(folder)


def test_half_written_and_missing_folders_name_the_command(tmp_path):
    with pytest.raises(ArtifactError, match="does not exist: run `python -m pipeline stage=merge`"):
        open_artifact(tmp_path / "merge")
    (tmp_path / "merge").mkdir()
    with pytest.raises(ArtifactError, match=r"has no manifest\.json, so it is not whole"):
        open_artifact(tmp_path / "merge")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"kind": 1}', '{"unknown": 2}'])
def test_unreadable_manifest_is_refused(tmp_path, text):
    folder = make(tmp_path / "prepare")
    (folder / "manifest.json").write_text(text)
    with pytest.raises(ArtifactError, match="cannot be read"):
        open_artifact(folder)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("failure", "none at all", "was edited"),
        ("metrics", {"rows": 99.0}, "was edited"),
        ("inputs", {"merge": "0" * 64}, "was edited"),
        ("kind", "engine", "was edited"),
        ("seal", "0" * 64, "was edited"),
        ("seal", None, "was edited"),
        ("files", {}, "was edited"),
        ("files", [], "files"),
        ("files", {"a": {"sha256": "x", "bytes": 1}}, "sha256"),
        ("files", {"a": {"sha256": "0" * 64, "bytes": -1}}, "bytes"),
        ("metrics", {"rows": "3"}, "metrics"),
        ("stage", 3, "stage"),
        ("schema", "x" * 9999, "another version"),
    ],
)
def test_an_edited_manifest_is_refused_in_a_line(tmp_path, field, value, message):
    folder = make(tmp_path / "prepare")
    content = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**content, field: value}))
    with pytest.raises(ArtifactError, match=message) as refused:
        open_artifact(folder)
    assert len(str(refused.value)) < 600
    assert "stage=prepare" in str(refused.value)


def test_a_manifest_nested_without_end_is_refused(tmp_path):
    folder = make(tmp_path / "prepare")
    (folder / "manifest.json").write_text("[" * 200_000)
    with pytest.raises(ArtifactError, match="cannot be read"):
        open_artifact(folder)


@pytest.mark.parametrize("name", ["stray.bin", "weights/stray.bin", "manifest.json.tmp"])
def test_a_file_that_was_added_is_refused(tmp_path, name):
    folder = make(tmp_path / "prepare")
    (folder / name).write_text("not ours")
    with pytest.raises(ArtifactError, match=r"was added after .* remove it"):
        open_artifact(folder)


def test_two_artifacts_that_were_swapped_are_refused(tmp_path):
    make(tmp_path / "merge", stage="import").rename(tmp_path / "swapped")
    with pytest.raises(ArtifactError, match="made by stage=import, not by stage=merge"):
        open_artifact(tmp_path / "swapped", stage="merge")


def test_every_byte_is_read_when_that_is_asked_for(tmp_path):
    folder = make(tmp_path / "prepare")
    open_artifact(folder)
    file = folder / "weights/a.bin"
    status = file.stat()
    file.write_bytes(b"9999")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    open_artifact(folder)  # nothing that git would see either
    with pytest.raises(ArtifactError, match="altered"):
        open_artifact(folder, reread=True)


def test_manifest_of_another_schema_is_refused(tmp_path):
    folder = make(tmp_path / "prepare", schema=99)
    with pytest.raises(ArtifactError, match="another version"):
        open_artifact(folder)


def test_wrong_kind_names_what_is_needed(tmp_path):
    opened = open_artifact(make(tmp_path / "prepare"))
    assert opened.require("dataset", "other") is opened
    with pytest.raises(ArtifactError, match="is a dataset, and a engine is needed"):
        opened.require("engine")


def test_verified_files_are_not_read_again(tmp_path, monkeypatch):
    folder = make(tmp_path / "prepare")
    open_artifact(folder)
    monkeypatch.setattr(artifact, "sha256_of_file", lambda path: pytest.fail(f"read {path} again"))
    open_artifact(folder)


def test_a_touched_file_is_read_again(tmp_path):
    folder = make(tmp_path / "prepare")
    open_artifact(folder)
    file = folder / "weights/a.bin"
    status = file.stat()
    file.write_bytes(b"9999")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    with pytest.raises(ArtifactError, match="altered"):
        open_artifact(folder)


def test_files_outside_are_read_once_and_their_index_is_written_once(tmp_path, monkeypatch):
    files = [tmp_path / f"{i}.jsonl" for i in range(50)]
    for i, file in enumerate(files):
        file.write_text(str(i))
    index, written, read = tmp_path / "index.json", [], []
    write, sha256 = artifact._write_json, artifact.sha256_of_file
    monkeypatch.setattr(artifact, "_write_json", lambda *a: (written.append(a), write(*a)))
    monkeypatch.setattr(artifact, "sha256_of_file", lambda f: (read.append(f), sha256(f))[1])
    digests = artifact.sha256_with_index(files, index)
    assert digests == [sha256(file) for file in files]
    assert (read, len(written)) == (files, 1)
    assert artifact.sha256_with_index(files, index) == digests
    assert (len(read), len(written)) == (50, 1)
    files[7].write_text("another")
    assert artifact.sha256_with_index(files, index)[7] == sha256(files[7])
    assert (read[50:], len(written)) == ([files[7]], 2)


def test_links_are_refused(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "link").symlink_to(tmp_path)
    with pytest.raises(ArtifactError, match="is a link"):
        artifact.hash_files(tmp_path / "out")


def test_replaced_folder_is_kept_aside(tmp_path):
    for name, text in (("new", "2"), ("place", "1")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(text)
    artifact.replace_folder(tmp_path / "new", tmp_path / "place", tmp_path / "old" / "kept")
    assert (tmp_path / "place/file").read_text() == "2"
    assert (tmp_path / "old/kept/file").read_text() == "1"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(deadline=None)  # the disk of a busy machine takes its time
@given(
    config=st.dictionaries(st.text(max_size=8), json_values, max_size=4),
    metric=st.floats(allow_nan=False),
)
def test_manifest_survives_writing_and_reading(tmp_path_factory, config, metric):
    folder = tmp_path_factory.mktemp("artifact") / "prepare"
    make(folder, config=config, metrics={"m": metric})
    read = open_artifact(folder).manifest
    assert read.config == json.loads(json.dumps(config))
    assert read.metrics == {"m": metric}
