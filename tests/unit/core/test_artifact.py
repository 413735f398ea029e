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
        "measured": [],
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


def forge(folder, **fields):
    """Edit a manifest and seal it again, as who knows the format can."""
    content = json.loads((folder / "manifest.json").read_text()) | fields
    content.pop("seal")
    seal = artifact.sha256_of_json(content)
    text = json.dumps({**content, "seal": seal}, indent=1, sort_keys=True) + "\n"
    (folder / "manifest.json").write_text(text)


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


def test_a_file_with_times_is_verified_and_is_no_part_of_the_identity(tmp_path):
    files = {"answers.jsonl": b"[]", "report.json": b'{"seconds": 1}'}
    first = make(tmp_path / "a/prepare", files, measured=["report.json"])
    files["report.json"] = b'{"seconds": 2}'
    later = make(tmp_path / "b/prepare", files, measured=["report.json"])
    assert open_artifact(first).manifest.digest == open_artifact(later).manifest.digest
    files["answers.jsonl"] = b"[1]"
    other = make(tmp_path / "c/prepare", files, measured=["report.json"])
    assert open_artifact(first).manifest.digest != open_artifact(other).manifest.digest
    (later / "report.json").write_bytes(b'{"seconds": 0}')
    with pytest.raises(ArtifactError, match=r"report\.json was altered"):
        open_artifact(later)


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


def test_a_manifest_that_would_be_read_without_end_is_refused_at_once(tmp_path):
    folder = make(tmp_path / "prepare")
    file = folder / "manifest.json"
    os.truncate(file, 2**40)  # of which the disk holds no more than before
    with pytest.raises(ArtifactError, match=r"cannot be read \(.* 1,099,511,627,776 bytes"):
        artifact.read_manifest(folder, "run it")
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(ArtifactError, match="it is not a file"):
        artifact.read_manifest(folder, "run it")


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
        ("extra", 1, "extra"),
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


def test_what_a_disk_loses_by_itself_is_found_when_every_byte_is_read(tmp_path):
    folder = make(tmp_path / "prepare")
    (folder / "weights/a.bin").write_bytes(b"9999")
    # The index of a file whose bytes changed and whose times did not.
    artifact.note_verified(folder, artifact.read_manifest(folder, ""))
    open_artifact(folder)
    with pytest.raises(ArtifactError, match="altered"):
        open_artifact(folder, reread=True)


def test_setting_a_files_time_back_hides_nothing(tmp_path):
    folder = make(tmp_path / "prepare")
    open_artifact(folder)
    file = folder / "weights/a.bin"
    status = file.stat()
    file.write_bytes(b"9999")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(ArtifactError, match="altered"):
        open_artifact(folder)


NAMES = [
    "/etc/passwd",
    "../import/a.bin",
    "weights/../a.bin",
    "./a",
    "a//b",
    "",
    "a\0b",
    "manifest.json",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_sealed_manifest_names_files_below_its_folder_only(tmp_path, name):
    files = {name: {"sha256": "0" * 64, "bytes": 1}}
    folder = make(tmp_path / "prepare")
    with pytest.raises(ArtifactError, match="not a path below"):  # it is not even written
        write_manifest(folder, replace(artifact.read_manifest(folder, ""), files=files))
    forge(folder, files=files)
    with pytest.raises(ArtifactError, match=r"files.* not a path below"):
        open_artifact(folder)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("fingerprint", "../../x"),  # the name of a folder is made of it
        ("stage", "../x"),
        ("kind", "no such/kind"),
        ("inputs", {"../x": "0" * 64}),
        ("inputs", {"merge": "0"}),
        ("input_seals", {"merge": 3}),
        ("metrics", {"rows": float("nan")}),
        ("metrics", {"rows": float("inf")}),
        ("seconds", -1.0),
        ("seconds", 10**400),
        ("peak_memory_bytes", 2**70),
        ("proof", {"a": float("nan")}),
        ("config", None),
    ],
)
def test_a_sealed_manifest_with_a_wrong_value_is_refused_in_a_line(tmp_path, field, value):
    folder = make(tmp_path / "prepare")
    forge(folder, **{field: value})
    with pytest.raises(ArtifactError) as refused:
        open_artifact(folder)
    assert len(str(refused.value)) < 600
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: text.replace('"kind"', '"kind": "dataset", "kind"'),  # the same, twice
        lambda text: text.replace(" ", ""),
        lambda text: text + "\n",
        lambda text: text.replace('"rows": 3.0', '"rows": 3.00'),
        lambda text: text.replace('"prepare"', '"\\u0070repare"'),
    ],
)
def test_a_manifest_that_says_the_same_in_another_text_was_edited(tmp_path, edit):
    folder = make(tmp_path / "prepare")
    file = folder / "manifest.json"
    edited = edit(file.read_text())
    assert edited != file.read_text()
    file.write_text(edited)
    with pytest.raises(ArtifactError, match="was edited"):
        open_artifact(folder)


def test_a_figure_that_is_no_number_is_not_recorded(tmp_path):
    with pytest.raises(ArtifactError, match="cosine is not a finite number"):
        make(tmp_path / "prepare", metrics={"rows": 1.0, "cosine": float("nan")})
    assert not (tmp_path / "prepare/manifest.json").exists()


def test_what_is_no_file_is_refused(tmp_path):
    folder = make(tmp_path / "prepare")
    (folder / "weights/a.bin").rename(tmp_path / "a.bin")
    for make_other, message in (
        (lambda file: file.mkdir(), "not a file any more"),
        (lambda file: file.symlink_to(tmp_path / "a.bin"), "is a link"),
        (os.mkfifo, "neither a file nor a folder"),
    ):
        file = folder / "weights/a.bin"
        make_other(file)
        with pytest.raises(ArtifactError, match=message):
            open_artifact(folder)
        file.rmdir() if file.is_dir() and not file.is_symlink() else file.unlink()
    (folder / "weights/a.bin").hardlink_to(tmp_path / "a.bin")
    (folder / "empty").mkdir()
    with pytest.raises(ArtifactError, match="empty was added"):
        open_artifact(folder)


def test_a_file_that_cannot_be_read_is_refused_in_a_line(tmp_path, monkeypatch):
    """As root every file can be read, so the system's answer is made up."""
    folder = make(tmp_path / "prepare")

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(artifact, "sha256_of_file", refuse)
    with pytest.raises(ArtifactError, match=r"cannot be read \(Permission denied\).*stage=prepare"):
        open_artifact(folder)


def test_empty_folders_are_not_committed(tmp_path):
    (tmp_path / "prepare/left/over").mkdir(parents=True)
    assert open_artifact(make(tmp_path / "prepare"))
    assert not (tmp_path / "prepare/left").exists()


def test_an_index_of_verified_files_that_is_damaged_is_made_again(tmp_path):
    folder = make(tmp_path / "prepare")
    open_artifact(folder)
    for text in ("[]", "3", "{", "[" * 100_000, '{"config.json": 3}'):
        (tmp_path / ".verified/prepare.json").write_text(text)
        assert open_artifact(folder)
    (tmp_path / ".verified/prepare.json").unlink()
    os.mkfifo(tmp_path / ".verified/prepare.json")
    assert open_artifact(folder)
    (tmp_path / "external.json").write_text(json.dumps({str(folder / "config.json"): 3}))
    assert artifact.sha256_with_index([folder / "config.json"], tmp_path / "external.json")


def test_a_manifest_sealed_again_is_found_by_what_was_made_from_it(tmp_path):
    source = open_artifact(make(tmp_path / "prepare"))
    user = make(
        tmp_path / "merge",
        stage="merge",
        inputs={"prepare": source.manifest.digest},
        input_seals={"prepare": source.manifest.seal},
    )
    read = {"prepare": source, "merge": open_artifact(user)}
    artifact.require_one_history(read)
    write_manifest(source.path, replace(source.manifest, metrics={"rows": 9.0}))
    read["prepare"] = open_artifact(source.path)
    with pytest.raises(ArtifactError, match=r"edited after .* was made from it"):
        artifact.require_one_history(read)
    later = replace(source.manifest, seconds=2.0, created="2026-01-02T00:00:00+00:00")
    write_manifest(source.path, later)  # the same files, made again
    artifact.require_one_history({**read, "prepare": open_artifact(source.path)})


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
    metric=st.floats(allow_nan=False, allow_infinity=False),
)
def test_manifest_survives_writing_and_reading(tmp_path_factory, config, metric):
    folder = tmp_path_factory.mktemp("artifact") / "prepare"
    make(folder, config=config, metrics={"m": metric})
    read = open_artifact(folder).manifest
    assert read.config == json.loads(json.dumps(config))
    assert read.metrics == {"m": metric}
