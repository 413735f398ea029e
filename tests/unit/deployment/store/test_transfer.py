"""Push and pull, through each kind of store: what arrives is what was made, or nothing does."""

import errno
import hashlib
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, chdir, closing
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import boto3
import fsspec
import pytest
from botocore.exceptions import ClientError
from moto.server import ThreadedMotoServer

from pipeline.core.artifact import Artifact, open_artifact
from pipeline.core.errors import (
    ArtifactError,
    Busy,
    ConfigError,
    MissingRuntime,
    PipelineError,
    ResourceError,
)
from pipeline.deployment.store import s3, transfer
from pipeline.deployment.store.blobs import Altered, Blob, Bundle, Missing, Store
from pipeline.deployment.store.filesystems import LIBRARIES, Filesystem, open_filesystem
from pipeline.deployment.store.folder import Folder
from pipeline.deployment.store.oci import TITLE, Oci
from pipeline.deployment.store.transfer import pull, push, read_bundle
from tests.full_disk import ROOMY, can_mount, disk, mount, used
from tests.made_artifacts import make_artifact
from tests.oci_registry import Registry, oci_registry

WEIGHTS = bytes(range(256)) * 1024
KINDS = ("folder", "s3", "gs", "oci")


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="module")
def registry() -> Iterator[Registry]:
    with oci_registry() as found:
        yield found


@pytest.fixture
def bucket(moto: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for name, value in {
        "AWS_ENDPOINT_URL": moto, "AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "key",
        "AWS_REGION": "us-east-1", "NO_PROXY": "127.0.0.1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    found = boto3.resource("s3", region_name="us-east-1").create_bucket(Bucket="models")
    yield found
    found.objects.all().delete()
    found.delete()


@pytest.fixture
def open_store(
    tmp_path: Path, bucket: Any, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str], Store]]:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    registry.blobs.clear()
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    places: dict[str, Callable[[], Store]] = {
        "folder": lambda: Folder(tmp_path / "store"),
        "s3": lambda: s3.S3("models/bank"),
        "gs": lambda: Filesystem(memory, "gs", "models/bank"),
        "oci": lambda: Oci(f"{registry.address}/team/bank"),
    }
    with ExitStack() as opened:
        yield lambda kind: opened.enter_context(closing(places[kind]()))


def make_version(folder: Path, engine: bytes = b"engine") -> dict[str, Artifact]:
    """An engine and the model that it was built from, which share a file."""
    files = {"model.safetensors": WEIGHTS, "tokenizer/tokenizer.json": b"{}"}
    return {
        "build": make_artifact(folder, "build", "engine", files={**files, "engine.json": engine}),
        "merge": make_artifact(folder, "merge", "hf_checkpoint", files=files),
    }


def content(artifact: Path) -> dict[str, bytes]:
    files = sorted(p for p in artifact.rglob("*") if p.is_file())
    return {str(file.relative_to(artifact)): file.read_bytes() for file in files}


@pytest.mark.parametrize("kind", KINDS)
def test_a_version_arrives_as_it_was_made(
    kind: str, open_store: Callable[[str], Store], tmp_path: Path
) -> None:
    made = make_version(tmp_path / "artifacts")
    bundle = push(made, open_store(kind))
    store = open_store(kind)  # of another machine
    assert read_bundle(store, bundle.blob.sha256) == bundle
    for stage, artifact in made.items():
        found = pull(store, bundle, stage, tmp_path / "models" / stage)
        assert found.manifest == artifact.manifest
        assert content(found.path) == content(artifact.path)
    assert sorted(p.name for p in (tmp_path / "models").iterdir() if p.name[0] == ".") == [
        ".verified"
    ]
    assert open_artifact(tmp_path / "models/build", reread=True)


@pytest.mark.parametrize("kind", KINDS)
def test_what_two_versions_share_is_sent_and_stored_once(
    kind: str, open_store: Callable[[str], Store], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(make_version(tmp_path / "one"), open_store(kind))
    second = open_store(kind)
    sent: list[str] = []
    put = second.put
    monkeypatch.setattr(
        second, "put", lambda blob, *rest: (sent.append(blob.title), put(blob, *rest))
    )
    push(make_version(tmp_path / "two", engine=b"another"), second)
    assert "build/engine.json" in sent
    assert not [title for title in sent if "safetensors" in title or "tokenizer" in title]


@pytest.mark.parametrize("kind", KINDS)
def test_a_store_that_lacks_or_damages_a_blob(
    kind: str, open_store: Callable[[str], Store], tmp_path: Path
) -> None:
    """Nothing appears; the next try, of a store that was mended, succeeds."""
    bundle = push(make_version(tmp_path / "artifacts"), open_store(kind))
    store = open_store(kind)
    with pytest.raises(ArtifactError, match="has no 000000"), store.errors():
        list(store.read("0" * 64))
    with pytest.raises(Missing):
        next(store.read("0" * 64))
    assert store.size("0" * 64) is None
    weights = hashlib.sha256(WEIGHTS).hexdigest()
    honest = store.read

    def damaged(digest: str, begin: int = 0) -> Iterator[bytes]:
        for part in honest(digest, begin):
            yield part[:-1] + b"!" if digest == weights else part

    store.read = damaged  # type: ignore[method-assign]
    with pytest.raises(ArtifactError, match=r"build/model.safetensors differs from its digest"):
        pull(store, bundle, "build", tmp_path / "model")
    assert not (tmp_path / "model").exists()
    store.read = honest  # type: ignore[method-assign]
    assert pull(store, bundle, "build", tmp_path / "model")
    with pytest.raises(ArtifactError, match="differs from its digest"):
        Bundle.parse(bundle.text + b" ", bundle.blob.sha256, store.address)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_changes_while_it_is_pushed_is_not_stored(
    kind: str, open_store: Callable[[str], Store]
) -> None:
    store = open_store(kind)
    for text in (b"shorter", b"other content", b"much longer content"):
        blob = Blob(hashlib.sha256(b"right content").hexdigest(), 13, "build/x")
        with pytest.raises(Altered):
            store.put(blob, BytesIO(text), lambda count: None)
        assert store.size(blob.sha256) is None
    store.put(blob, BytesIO(b"right content"), lambda count: None)
    assert b"".join(store.read(blob.sha256, 6)) == b"content"
    empty = Blob(hashlib.sha256(b"").hexdigest(), 0, "build/empty")
    store.put(empty, BytesIO(b""), lambda count: None)
    assert (store.size(empty.sha256), list(store.read(empty.sha256))) in ((0, []), (0, [b""]))


def test_a_pull_resumes_where_the_store_vanished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.deployment.store.folder.PART", 1024)
    store = Folder(tmp_path / "store")
    bundle = push(make_version(tmp_path / "artifacts"), store)
    weights, honest = hashlib.sha256(WEIGHTS).hexdigest(), store.read
    asked: list[int] = []

    def vanishing(digest: str, begin: int = 0) -> Iterator[bytes]:
        if digest == weights:
            asked.append(begin)
        for count, part in enumerate(honest(digest, begin)):
            if digest == weights and count == 3 and len(asked) == 1:
                raise OSError(errno.EIO, "Input/output error")
            yield part

    store.read = vanishing  # type: ignore[method-assign]
    with pytest.raises(PipelineError, match="cannot be used"):
        pull(store, bundle, "build", tmp_path / "model")
    assert not (tmp_path / "model").exists()
    pull(store, bundle, "build", tmp_path / "model")
    assert asked == [0, 3072]
    pull(store, bundle, "build", tmp_path / "model")  # is there
    assert len(asked) == 2


def test_a_push_to_a_folder_resumes_and_mends_what_a_killed_one_left(tmp_path: Path) -> None:
    store, digest = Folder(tmp_path), hashlib.sha256(WEIGHTS).hexdigest()
    for left in (
        WEIGHTS[:5000],
        WEIGHTS[:5000] + b"x" * 100,
        WEIGHTS + b"more",
        b"y" * len(WEIGHTS),
    ):
        place = tmp_path / "blobs/sha256" / digest
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        place.with_name(f"{digest}.partial").write_bytes(left)
        store.put(Blob(digest, len(WEIGHTS), "w"), BytesIO(WEIGHTS), lambda count: None)
        assert place.read_bytes() == WEIGHTS
        assert [p.name for p in place.parent.iterdir()] == [digest]


def test_parts_of_a_large_blob_are_kept_in_s3(
    open_store: Callable[[str], Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "UPLOAD_PART", 5 * 2**20)
    large = b"0123456789abcdef" * (2**20 - 1000)
    blob = Blob(hashlib.sha256(large).hexdigest(), len(large), "build/model")
    store = open_store("s3")
    assert isinstance(store, s3.S3)
    uploaded: list[int] = []
    send = store._client.upload_part

    def upload(**given: Any) -> Any:
        if given["PartNumber"] == 3 and not uploaded.count(3):
            uploaded.append(3)
            raise ConnectionError("gone")
        uploaded.append(given["PartNumber"])
        return send(**given)

    monkeypatch.setattr(store._client, "upload_part", upload)
    with pytest.raises(PipelineError, match="broke off"), store.errors():
        store.put(blob, BytesIO(large), lambda count: None)
    assert store.size(blob.sha256) is None
    before = sorted(set(uploaded) - {3})
    store.put(blob, BytesIO(large), lambda count: None)
    assert sorted(uploaded) == sorted([*before, 3, *(n for n in (1, 2, 3, 4) if n not in before)])
    assert b"".join(store.read(blob.sha256)) == large
    with pytest.raises(Altered):
        store.put(replace(blob, sha256="0" * 64), BytesIO(large), lambda count: None)
    assert "Uploads" not in store._client.list_multipart_uploads(Bucket="models")


def test_two_pushes_of_a_blob_in_parts_at_once(
    open_store: Callable[[str], Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one joins the upload of the first, which completes it under its hands."""
    monkeypatch.setattr(s3, "UPLOAD_PART", 5 * 2**20)
    large = b"0123456789abcdef" * (2**20 - 1000)
    blob = Blob(hashlib.sha256(large).hexdigest(), len(large), "build/model")
    first, second = open_store("s3"), open_store("s3")
    assert isinstance(second, s3.S3)
    send = second._client.upload_part

    def upload(**given: Any) -> Any:
        first.put(blob, BytesIO(large), lambda count: None)
        return send(**given)

    monkeypatch.setattr(second._client, "upload_part", upload)
    second._client.create_multipart_upload(
        Bucket="models", Key=second._key(blob.sha256), ChecksumAlgorithm="SHA256"
    )
    with second.errors():
        second.put(blob, BytesIO(large), lambda count: None)
    assert b"".join(second.read(blob.sha256)) == large


@pytest.mark.parametrize("count", [1, 3])
def test_a_store_that_compares_nothing_is_read_back(
    count: int, open_store: Callable[[str], Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It speaks S3's protocol, but ignores checksums and lists no uploads. count: of parts."""
    monkeypatch.setattr(s3, "UPLOAD_PART", 5 * 2**20)
    content = b"0123456789abcdef" * (2**20 * 5 * (count - 1) // 16 + 100)
    blob = Blob(hashlib.sha256(content).hexdigest(), len(content), "build/model")
    store = open_store("s3")
    assert isinstance(store, s3.S3)
    send = {name: getattr(store._client, name) for name in ("put_object", "upload_part")}
    damage = [b""]

    def sends(name: str) -> Callable[..., Any]:
        def call(*, Body: Any, ChecksumAlgorithm: str, ChecksumSHA256: str, **given: Any) -> Any:
            found = send[name](**given, Body=bytes(Body[:-1]) + (damage[0] or bytes(Body[-1:])))
            return {"ETag": found["ETag"] if name == "upload_part" else '"encrypted"'}

        return call

    for name in send:
        monkeypatch.setattr(store._client, name, sends(name))
    monkeypatch.setattr(s3, "_is_md5", lambda etag, content: False)
    reads: list[str] = []
    read = store.read
    monkeypatch.setattr(store, "read", lambda digest: (reads.append(digest), read(digest))[1])
    refused = ClientError(
        {"Error": {"Code": "NotImplemented"}, "ResponseMetadata": {"HTTPStatusCode": 501}},  # type: ignore[typeddict-item]
        "ListMultipartUploads",
    )
    monkeypatch.setattr(
        store._client, "list_multipart_uploads", lambda **_: (_ for _ in ()).throw(refused)
    )
    store.put(blob, BytesIO(content), lambda count: None)
    assert reads == [blob.sha256]
    assert b"".join(read(blob.sha256)) == content
    store._client.delete_object(Bucket="models", Key=store._key(blob.sha256))
    damage[0] = b"!"
    with pytest.raises(Altered):
        store.put(blob, BytesIO(content), lambda count: None)
    assert store.size(blob.sha256) is None


def test_a_chunk_whose_connection_breaks_goes_on_in_a_registry(
    open_store: Callable[[str], Store], registry: Registry
) -> None:
    store = open_store("oci")
    registry.break_after = 1000
    blob = Blob(hashlib.sha256(WEIGHTS).hexdigest(), len(WEIGHTS), "build/model")
    store.put(blob, BytesIO(WEIGHTS), lambda count: None)
    assert registry.blobs[blob.sha256] == WEIGHTS


def test_oras_finds_the_files_of_a_version(
    open_store: Callable[[str], Store], registry: Registry, tmp_path: Path
) -> None:
    made = make_version(tmp_path)
    bundle = push(made, open_store("oci"))
    manifest = registry.manifests[f"bundle-{bundle.blob.sha256[:16]}"]
    titles = {layer["annotations"][TITLE] for layer in manifest["layers"]}
    assert {"build/engine.json", "build/manifest.json", "build/model.safetensors"} <= titles
    assert manifest["config"]["digest"] == f"sha256:{bundle.blob.sha256}"


@pytest.mark.parametrize("kind", KINDS)
def test_two_pushes_of_one_version_at_once(
    kind: str, open_store: Callable[[str], Store], tmp_path: Path
) -> None:
    made, stores = make_version(tmp_path / "artifacts"), [open_store(kind) for _ in range(3)]
    bundles: list[Bundle] = []
    threads = [
        threading.Thread(target=lambda store=store: bundles.append(push(made, store)))
        for store in stores
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({bundle.blob.sha256 for bundle in bundles}) == 1
    assert len(bundles) == 3
    assert not list(tmp_path.rglob("*.partial"))
    pulled = pull(stores[0], bundles[0], "build", tmp_path / "model")
    assert content(pulled.path) == content(made["build"].path)


def test_where_a_pull_may_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Folder(tmp_path / "store")
    first = push(make_version(tmp_path / "one"), store)
    second = push(make_version(tmp_path / "two", engine=b"another"), store)
    place = tmp_path / "model"
    pull(store, first, "build", place)
    assert pull(store, second, "build", place).manifest.digest == second.artifacts["build"].digest
    assert (place / "engine.json").read_bytes() == b"another"
    (place / "engine.json").write_bytes(b"altered")
    pull(store, second, "build", place)
    assert (place / "engine.json").read_bytes() == b"another"
    (tmp_path / "other").mkdir()
    (tmp_path / "other/notes.txt").touch()
    with pytest.raises(ConfigError, match="holds something else"):
        pull(store, first, "build", tmp_path / "other")
    with pytest.raises(ArtifactError, match="without export: it has build, merge"):
        pull(store, first, "export", place)
    scratch = tmp_path / f".new.{first.artifacts['build'].digest[:16]}.pulling"
    with transfer._alone(scratch), pytest.raises(Busy, match="another process"):
        pull(store, first, "build", tmp_path / "new")


def test_a_disk_that_is_too_small_or_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Folder(tmp_path / "store")
    bundle = push(make_version(tmp_path / "artifacts"), store)
    with monkeypatch.context() as small:
        small.setattr(transfer, "free_disk_bytes", lambda folder: 2**20)
        with pytest.raises(ResourceError, match=r"has 1.0 MiB free, and 16.3 MiB are to come"):
            pull(store, bundle, "build", tmp_path / "model")

    def full(store: Store, blob: Blob, *rest: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(transfer, "_take", full)
        with pytest.raises(ResourceError, match=r"the disk of .* is full: free some space"):
            pull(store, bundle, "build", tmp_path / "model")
    with monkeypatch.context() as patched:
        patched.setattr(Folder, "put", full)
        with pytest.raises(ResourceError, match=r"the disk of .*store2 is full"):
            push(make_version(tmp_path / "artifacts"), Folder(tmp_path / "store2"))
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("kind", ["folder", "s3"])
def test_a_disk_that_fills_up_while_pulling(
    kind: str, open_store: Callable[[str], Store], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real one. Its size is not known beforehand, as somebody else may fill it meanwhile."""
    if not can_mount(tmp_path / "disk"):
        pytest.skip("needs the right to mount a tmpfs")
    made = make_version(tmp_path / "artifacts")
    store = open_store(kind)
    bundle = push(made, store)
    monkeypatch.setattr(transfer, "free_disk_bytes", lambda folder: 2**40)
    with disk(tmp_path / "disk") as small:
        mount(small, f"size={len(WEIGHTS) // 2},nr_inodes=100", "remount")
        with pytest.raises(ResourceError, match=r"the disk of .* is full: free some space"):
            pull(store, bundle, "build", small / "model")
        assert not (small / "model").exists()
        assert used(small)[0] > len(WEIGHTS) // 4, "what arrived stays for the next try"
        mount(small, ROOMY, "remount")
        pulled = pull(store, bundle, "build", small / "model")
        assert content(pulled.path) == content(made["build"].path)


def test_stores_that_cannot_be_used_say_what_to_set(
    bucket: Any, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_version(tmp_path / "artifacts")
    for scheme, (library, _) in LIBRARIES.items():
        with pytest.raises(MissingRuntime, match=f"needs {library}"):
            open_filesystem(scheme, "models/bank")

    def refused(store: Store, error: type[PipelineError], words: str) -> None:
        with closing(store), pytest.raises(error, match=words):
            push(made, store)

    refused(s3.S3("elsewhere/bank"), PipelineError, "correct the bucket")
    unknown = "does not exist: correct the registry"
    refused(Oci(f"{registry.address}/other/bank"), PipelineError, unknown)
    refused(Oci("127.0.0.1:1/other/bank"), PipelineError, "cannot be reached")
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    refused(Oci(f"{registry.address}/team/bank"), ConfigError, "config.json cannot be read")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # which has the credentials
    refused(s3.S3("models/bank"), PipelineError, "needs credentials")


def test_a_pulled_version_goes_through_dvc(tmp_path: Path) -> None:
    """As docs/registry.md has it: add and push where it was pulled, and pull in a clone."""
    from dvc.repo import Repo  # takes a second

    store = Folder(tmp_path / "store")
    bundle = push(make_version(tmp_path / "artifacts"), store)
    project = tmp_path / "project"
    project.mkdir()
    repo = Repo.init(str(project), no_scm=True)
    with repo.config.edit() as config:
        config["remote"] = {"store": {"url": str(tmp_path / "remote")}}
        config["core"]["remote"] = "store"
    place = project / "versions/bank"
    pulled = pull(store, bundle, "build", place)
    with chdir(project), closing(repo):
        repo.add("versions/bank")
        assert repo.push() == 5  # four files, and their list
    clone = tmp_path / "clone"
    clone.mkdir()
    Repo.init(str(clone), no_scm=True).close()
    shutil.copytree(project / "versions", clone / "versions", ignore=lambda *_: ["bank"])
    shutil.copy(project / ".dvc/config", clone / ".dvc/config")
    with chdir(clone), closing(Repo()) as other:
        other.pull()
    found = open_artifact(clone / "versions/bank", stage="build", reread=True)
    assert found.manifest == pulled.manifest
