"""The index of a distributed checkpoint: read as plain data, written the same each time."""

import builtins
import os
import pickle
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from pipeline.core.errors import ArtifactError
from pipeline.training.nemo.checkpoint_index import NotAnIndex, canonical, read_index, read_plain


def made_index(**changes: Any) -> Metadata:
    """As torch makes it: with ids, folders and plans of the run that wrote it."""
    names = ["decoder.weight", "bias"]
    sizes = {"decoder.weight": torch.Size([4, 6]), "bias": torch.Size([])}
    index = Metadata(
        {
            name: TensorStorageMetadata(
                TensorProperties(torch.bfloat16),
                sizes[name],
                [ChunkStorageMetadata(torch.Size([0] * len(sizes[name])), sizes[name])],
            )
            for name in names
        },
        storage_data={
            MetadataIndex(name, [0] * len(sizes[name]), 0): _StorageInfo("__0_0.distcp", 8 * n, 8)
            for n, name in enumerate(names)
        },
        storage_meta=StorageMeta(checkpoint_id="/home/somebody/run", save_id=os.urandom(4).hex()),
        version="1.0.0",
    )
    index.all_local_plans = [os.urandom(4)]  # type: ignore[attr-defined]
    index.mcore_data = {  # type: ignore[attr-defined]
        "decoder.weight": {"nd_reformulated_orig_global_shape": (2, 2, 6)}
    }
    for name, value in changes.items():
        setattr(index, name, value)
    return index


def written(index: Metadata, folder: Path) -> Path:
    (folder / ".metadata").write_bytes(pickle.dumps(index, protocol=4))
    return folder / ".metadata"


def test_an_index_is_read_as_it_was_written(tmp_path: Path) -> None:
    made = canonical(made_index())
    assert read_index(written(made, tmp_path)) == made
    assert made.state_dict_metadata == made_index().state_dict_metadata
    assert made.storage_data == made_index().storage_data
    assert vars(read_index(tmp_path / ".metadata")) == vars(made)


def test_two_runs_write_the_same_bytes(tmp_path: Path) -> None:
    first, second = canonical(made_index()), canonical(made_index())
    assert pickle.dumps(first) == pickle.dumps(second)
    assert b"somebody" not in pickle.dumps(first)
    # Nor does it matter which strings were one object, and in which order ranks wrote.
    other = pickle.loads(pickle.dumps(made_index()))
    other.state_dict_metadata = dict(reversed(other.state_dict_metadata.items()))
    other.storage_data = dict(reversed(other.storage_data.items()))
    assert pickle.dumps(canonical(other)) == pickle.dumps(first)


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


@pytest.mark.parametrize("place", ["version", "planner_data", "storage_meta", "mcore_data"])
def test_code_in_an_index_does_not_run(tmp_path: Path, place: str) -> None:
    file, proof = (
        written(made_index(**{place: Payload(tmp_path / "ran")}), tmp_path),
        tmp_path / "ran",
    )
    with pytest.raises(
        ArtifactError, match=r"\(it (names|has the opcode) .*\), so nothing of it is"
    ):
        read_index(file)
    assert not proof.exists()
    pickle.loads(file.read_bytes())
    assert proof.exists()  # as it would


@pytest.mark.parametrize(
    "name",
    [
        ("os", "system"),
        ("builtins", "eval"),
        ("torch", "load"),
        ("torch.hub", "load"),
        ("torch.distributed.checkpoint.metadata", "os.system"),
        ("torch.distributed.checkpoint.metadata", "__builtins__"),
        ("torch.serialization", "_get_layout.__globals__"),
        ("torch.Size", "__reduce__"),
        ("io", "BytesIO"),
    ],
)
def test_only_the_classes_of_an_index_may_be_named(name: tuple[str, str]) -> None:
    module, member = (text.encode() for text in name)
    short = b"\x8c" + bytes([len(module)]) + module + b"\x8c" + bytes([len(member)]) + member
    for data in (b"\x80\x04" + short + b"\x93)R.", b"c" + module + b"\n" + member + b"\n)R."):
        with pytest.raises(NotAnIndex, match=r"it names|opcode GLOBAL"):
            read_plain(data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b".",
        b"\x80\x04",
        b"\x80\x04].extra"[:3],
        b"\x80\x04(((((.",
        b"\x80\x04]]s.",
        b"\x80\x04}K\x01s.",
        b"\x80\x04h\x07.",
        b"\x80\x04j\xff\xff\xff\xff.",
        b"\x80\x04K\x01)R.",
        b"\x80\x04}]K\x01s.",
        b"\x80\x04\x82\x01.",  # a class by number, from a registry
        b"\x80\x04Pname\n.",  # an object kept elsewhere
        b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b".",
        b"\x80\x04" + b"(" * 100_000,
        os.urandom(500),
    ],
)
def test_damaged_and_hostile_bytes_are_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / ".metadata").write_bytes(data)
    with pytest.raises(ArtifactError, match="is not the index of a checkpoint") as refused:
        read_index(tmp_path / ".metadata")
    assert "\n" not in str(refused.value)


def test_every_flipped_byte_gives_an_index_or_a_refusal(tmp_path: Path) -> None:
    data = pickle.dumps(canonical(made_index()), protocol=4)
    for place in range(len(data)):
        (tmp_path / ".metadata").write_bytes(
            data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :]
        )
        with suppress(ArtifactError):
            read_index(tmp_path / ".metadata")


def _size(*numbers: Any) -> Any:
    return torch.Size(numbers)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i: _place(i, relative_path="../other/__0_0.distcp"), "names the file"),
        (lambda i: _place(i, relative_path="/etc/passwd"), "names the file"),
        (lambda i: _place(i, offset=-1), "a number that is none"),
        (lambda i: _place(i, length=2**63), "a number that is none"),
        (lambda i: _place(i, transform_descriptors=["zstd"]), "transformation"),
        (lambda i: i.state_dict_metadata.update(o=BytesStorageMetadata()), "it names"),
        (lambda i: i.state_dict_metadata.pop("bias"), "is no tensor of it"),
        (lambda i: i.state_dict_metadata["bias"].chunks.append(None), "no ChunkStorageMetadata"),
        (lambda i: setattr(i.state_dict_metadata["bias"], "size", (1,)), "no Size"),
        (lambda i: setattr(i, "storage_data", None), "has no storage_data"),
        (lambda i: i.mcore_data.update(x={"y": [1]}), "no list of numbers"),
    ],
)
def test_values_of_another_kind_are_refused(tmp_path: Path, change: Any, message: str) -> None:
    index = canonical(made_index())
    change(index)
    with pytest.raises(ArtifactError, match=message):
        read_index(written(index, tmp_path))


def _place(index: Metadata, **fields: Any) -> None:
    for name, value in fields.items():
        setattr(next(iter(index.storage_data.values())), name, value)


def test_reading_looks_up_nothing_and_calls_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = pickle.dumps(canonical(made_index()), protocol=4)
    monkeypatch.setattr(builtins, "__import__", lambda *a, **k: pytest.fail(f"imports {a[0]}"))
    assert read_plain(data).name == "torch.distributed.checkpoint.metadata.Metadata"


class Called:
    """A pickle of it makes a folder when it is read."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.folder,)


def test_what_others_put_beside_the_tensors_is_left_out_and_never_called(tmp_path: Path) -> None:
    index = made_index(
        planner_data={"a": ("b", 1.5), "c": {1, 2}, "d": frozenset("x")},
        storage_meta=StorageMeta(checkpoint_id=Path("/elsewhere")),
        more=Called(tmp_path / "called"),
    )
    index.state_dict_metadata["layer._extra_state"] = BytesStorageMetadata()
    index.storage_data[MetadataIndex("layer._extra_state")] = _StorageInfo("__0_0.distcp", 0, 1)
    file = written(index, tmp_path)
    with pytest.raises(ArtifactError, match="is not the index of a checkpoint"):
        read_index(file)
    found = read_index(file, others=True)
    assert sorted(found.state_dict_metadata) == ["bias", "decoder.weight"]
    assert {key.fqn for key in found.storage_data} == {"bias", "decoder.weight"}
    assert not (tmp_path / "called").exists()


def test_a_tensor_of_others_is_checked_as_ours_are(tmp_path: Path) -> None:
    index = made_index()
    index.storage_data[MetadataIndex("bias")] = _StorageInfo("../../etc/passwd", 0, 8)
    with pytest.raises(ArtifactError, match="names the file"):
        read_index(written(index, tmp_path), others=True)
