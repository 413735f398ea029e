"""Models in object stores: S3's protocol by moto's server, fsspec's file systems by its memory."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import fsspec
import pytest
from moto.server import ThreadedMotoServer

from pipeline.core import extras
from pipeline.core.errors import ConfigError, DataError, MissingRuntime, ResourceError
from pipeline.models.checks import check_folder
from pipeline.models.sources import fetching, objects
from pipeline.models.sources.address import Address
from pipeline.models.sources.fetching import fetch, is_whole, local_folder, provenance
from tests.unit.model_folders import add_random_weights, make_model_folder

NEVER = ("pytorch_model.bin", "optimizer.pt", "modeling_x.py", "README.md")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = add_random_weights(make_model_folder(tmp_path / "published", "chatml"))
    for name in NEVER:
        (folder / name).write_bytes(b"x" * 2000)
    return folder


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    moto = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    yield f"http://{host}:{port}"
    moto.stop()


@pytest.fixture
def bucket(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for name, value in {
        "AWS_ENDPOINT_URL": server, "AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "key",
        "AWS_REGION": "us-east-1", "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "NO_PROXY": "127.0.0.1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    fetching._place.cache_clear()
    found = boto3.resource("s3", region_name="us-east-1").create_bucket(Bucket="models")
    yield found
    found.objects.all().delete()
    found.delete()
    fetching._place.cache_clear()


def publish(bucket: Any, folder: Path, prefix: str = "tiny/v1/") -> None:
    for file in folder.iterdir():
        bucket.upload_file(str(file), prefix + file.name)


ADDRESS = "s3://models/tiny/v1"


def test_a_model_of_s3(bucket: Any, folder: Path, tmp_path: Path) -> None:
    publish(bucket, folder)
    place = Path(local_folder(ADDRESS, tmp_path))
    assert [file.name for file in place.iterdir()] == ["config.json"]
    assert not is_whole(place, tmp_path)
    fetch(place, tmp_path)
    assert check_folder(place) == check_folder(folder)
    assert not {file.name for file in place.iterdir()} & set(NEVER)
    found = provenance(place, tmp_path)
    assert found is not None
    assert found["source"] == ADDRESS
    assert is_whole(place, tmp_path)
    bucket.delete_objects(Delete={"Objects": [{"Key": "tiny/v1/model.safetensors"}]})
    fetch(place, tmp_path)  # nothing is asked again


def test_a_fetch_that_was_interrupted_resumes(
    bucket: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(bucket, folder)
    place = Path(local_folder(ADDRESS, tmp_path))
    read, began = objects.S3.read, list[int]()

    def cut(store: Any, file: Any, begin: int) -> Iterator[bytes]:
        began.append(begin)
        for part in read(store, file, begin):
            yield part[:100_000] if file.name == "model.safetensors" and not begin else part

    monkeypatch.setattr(objects.S3, "read", cut)
    with pytest.raises(DataError, match=r"model\.safetensors arrived with 100000 bytes of .* resu"):
        fetch(place, tmp_path)
    fetch(place, tmp_path)
    assert 100_000 in began
    whole = (folder / "model.safetensors").read_bytes()
    assert (place / "model.safetensors").read_bytes() == whole
    assert not list(place.glob("*.partial"))


def test_files_that_change(
    bucket: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(bucket, folder)
    place = Path(local_folder(ADDRESS, tmp_path))
    (folder / "model.safetensors").write_bytes(b"x" * 3000)
    publish(bucket, folder)
    with pytest.raises(DataError, match=r"model\.safetensors changed while it was read"):
        fetch(place, tmp_path)
    fetching._place.cache_clear()
    with pytest.raises(DataError, match=r"changed since it was recorded: remove its entry"):
        fetch(place, tmp_path)


def test_what_is_not_there_or_may_not_be_read(
    bucket: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for address, words in (
        ("s3://models/nothing", "there are no files below it"),
        ("s3://no-such-bucket/x", "does not exist, or is in another region"),
    ):
        with pytest.raises(DataError, match=words):
            local_folder(address, tmp_path)
    publish(bucket, folder)
    from botocore.exceptions import ClientError

    def refuse(*_: Any, **__: Any) -> Any:
        raise ClientError({"ResponseMetadata": {"HTTPStatusCode": 403}}, "ListObjectsV2")

    with monkeypatch.context() as patch:
        patch.setattr(objects.S3, "list", refuse)
        with pytest.raises(DataError, match=r"may not be read \(403\)"):
            local_folder(ADDRESS, tmp_path)
    fetching._place.cache_clear()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(DataError, match=r"cannot be reached \(EndpointConnectionError\)"):
        local_folder(ADDRESS, tmp_path)


def test_a_full_disk_is_named(
    bucket: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(bucket, folder)
    place = Path(local_folder(ADDRESS, tmp_path))

    def full(*_: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(objects.S3, "read", full)
    with pytest.raises(ResourceError, match="is full: free some space, or set XDG_CACHE_HOME"):
        fetch(place, tmp_path)


def test_any_file_system_of_fsspec(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Google Cloud Storage is read by the same code; its client is not part of the environment."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    memory = fsspec.filesystem("memory")
    for file in folder.iterdir():
        memory.pipe(f"/models/tiny/{file.name}", file.read_bytes())
    store = objects.FileSystem(memory, "/models/tiny")
    place = objects.Objects(Address("gs", "models/tiny"), store)
    revision = place.resolve()
    assert place.get(revision, ["config.json", "model.safetensors"]).keys() == {
        "config.json", "model.safetensors"}  # fmt: skip
    found = place.folder(revision) / "model.safetensors"
    assert found.read_bytes() == (folder / "model.safetensors").read_bytes()
    memory.pipe("/models/tiny/tokenizer.json", b"{}")
    with pytest.raises(DataError, match=r"tokenizer\.json changed while it was read"):
        place.get(revision, ["tokenizer.json"])


def test_what_no_client_here_can_fetch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(extras.Extra, "missing", lambda extra: list(extra.packages))
    with pytest.raises(
        MissingRuntime, match="needs gcsfs, which is not installed: `make setup EXTRA=gcs`"
    ):
        local_folder("gs://bucket/model", tmp_path)
    with pytest.raises(ConfigError, match="ngc registry model download-version nvidia/nemo/x:1"):
        local_folder("ngc://nvidia/nemo/x:1", tmp_path)
