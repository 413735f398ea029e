"""Data files below an address: what is fetched, how rows name it, and each failure in one line."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from pipeline.config.data import DataConfig
from pipeline.config.schema import Config, load
from pipeline.core.errors import ConfigError, DataError
from pipeline.data.dataset import read_split
from pipeline.data.preparation import remote
from pipeline.orchestration.compose import compose
from pipeline.stages import prepare, retrain
from tests.integration.hub_server import HubServer, point_at
from tests.unit.model_folders import add_weights, make_model_folder
from tests.unit.stages.test_prepare import WORDS, pair, write

FETCHED = ["test.jsonl", "train/a.jsonl", "train/b.jsonl.gz"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return add_weights(make_model_folder(tmp_path_factory.mktemp("model"), "chatml"), 128)


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A folder of data, with files that no glob names."""
    folder = tmp_path / "published"
    (folder / "train" / "deeper").mkdir(parents=True)
    rows = [pair(f"What of the {w}?", f"The {w} is fine.") for w in WORDS]
    write(folder / "train" / "a.jsonl", *rows[:6])
    with gzip.open(folder / "train" / "b.jsonl.gz", "wt") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows[6:])
    write(folder / "test.jsonl", pair("How do I get a mortgage?", "In a branch."))
    for other in ("train/deeper/c.jsonl", "weights.bin", "loader.py"):
        (folder / other).write_text("{}\n" * 400)
    return folder


@pytest.fixture
def hub(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    remote._place.cache_clear()
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with HubServer() as server:
        point_at(server.url, tmp_path / "cache", monkeypatch)
        server.add("datasets/org/chats", published)
        yield server
    remote._place.cache_clear()


@pytest.fixture(scope="module")
def store() -> Iterator[str]:
    moto = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    yield f"http://{host}:{port}"
    moto.stop()


@pytest.fixture
def bucket(
    store: str, published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Any]:
    for name, value in {
        "AWS_ENDPOINT_URL": store, "AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "key",
        "AWS_REGION": "us-east-1", "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "NO_PROXY": "127.0.0.1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    remote._place.cache_clear()
    found = boto3.resource("s3", region_name="us-east-1").create_bucket(Bucket="chats")
    for file in (file for file in published.rglob("*") if file.is_file()):
        found.upload_file(str(file), f"2026/{file.relative_to(published)}")
    yield found
    found.objects.all().delete()
    found.delete()
    remote._place.cache_clear()


def words(folder: str, tmp_path: Path, *more: str) -> list[str]:
    return ["data=files", f"data.folder={folder}", "data.train=[train/*]", "data.test=[test.jsonl]",
            f"artifacts={tmp_path / 'artifacts'}", "prepare.max_length=64",
            "model=local", "model.name=tiny", *more]  # fmt: skip


def made(tree: dict[str, Any], out: Path) -> tuple[Config, Any]:
    config = load(tree)
    remote.fetch(config.data, config.artifacts)
    out.mkdir()
    return config, prepare.run(config, {}, out)


@pytest.mark.parametrize("kind", ["hub", "bucket"])
def test_rows_below_an_address(
    kind: str, model: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    source = request.getfixturevalue(kind)
    address = {"hub": "hf://datasets/org/chats@main", "bucket": "s3://chats/2026"}[kind]
    given = words(address, tmp_path, f"model.path={model}")
    tree = compose(given)
    folder = Path(tree["data"]["folder"])
    assert not [file for file in folder.rglob("*") if file.is_file()], "planning fetches nothing"
    config, outcome = made(tree, tmp_path / "out")
    found = sorted(f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file())
    assert found == FETCHED
    if kind == "hub":
        assert sorted(source.files_asked_for()) == FETCHED
    proof = outcome.proof["source"]
    assert proof["source"] == address
    assert len(proof["digest"]) == 64
    rows = [row for split in ("train", "validation") for row in read_split(tmp_path / "out", split)]
    assert len(rows) == len(WORDS)
    assert {row.source for row in rows} == {
        f"{address}/train/{file}:{line}" for file in ("a.jsonl", "b.jsonl.gz")
        for line in range(1, 7)
    }  # fmt: skip

    # Nothing is asked again, and the project keeps to the revision.
    if kind == "hub":
        seen = len(source.seen)
        remote.fetch(load(compose(given)).data, config.artifacts)
        assert len(source.seen) == seen
    else:
        source.put_object(Key="2026/train/a.jsonl", Body=b"{}")
        remote.fetch(load(compose(given)).data, config.artifacts)
        (folder / "train/a.jsonl").unlink()
        remote._place.cache_clear()
        with pytest.raises(DataError, match=r"s3://chats/2026 changed since it was recorded: remo"):
            remote.fetch(config.data, config.artifacts)


def test_the_digest_that_the_hub_names_is_checked(hub: HubServer, tmp_path: Path) -> None:
    hub.corrupt.add("a.jsonl")
    config = load(compose(words("hf://datasets/org/chats", tmp_path, "model.path=m")))
    with pytest.raises(DataError, match=r"a\.jsonl arrived with another digest .* fetch it again"):
        remote.fetch(config.data, config.artifacts)


@pytest.mark.parametrize(
    ("folder", "said"),
    [
        ("hf://datasets/org/none", r"hf://datasets/org/none is not on the hub, or is private"),
        ("hf://org/chats", r"names a model: for a data set type hf://datasets/org/chats"),
        ("hf://datasets/", r"is not of the form hf://datasets/ORG/NAME@REVISION, as in hf://datas"),
        ("https://hub.example/datasets/org/chats/tree/main",
         r"is a web page: for a data set on the hub type data\.folder=hf://datasets/org/chats@main"),
        ("ftp://x/y", r"data\.folder=ftp://x/y is not a known kind of address: give a folder, or"),
    ],
)  # fmt: skip
def test_other_addresses_are_refused(
    folder: str, said: str, hub: HubServer, tmp_path: Path
) -> None:
    with pytest.raises((ConfigError, DataError), match=said):
        compose(words(folder, tmp_path, "model.path=m"))


def test_a_glob_that_matches_nothing(hub: HubServer, bucket: Any, tmp_path: Path) -> None:
    for folder in ("hf://datasets/org/chats", "s3://chats/2026"):
        with pytest.raises(DataError, match=rf"data\.train: no file in {folder} matches 'x/\*'"):
            compose(words(folder, tmp_path, "model.path=m", "data.train=[x/*]"))


def test_names_that_lead_out_of_the_folder_are_not_taken(bucket: Any, tmp_path: Path) -> None:
    bucket.put_object(Key="2026/train/../../../evil.jsonl", Body=b"{}")
    bucket.put_object(Key="2026//etc/evil.jsonl", Body=b"{}")
    config = load(compose(words("s3://chats/2026", tmp_path, "model.path=m", "data.train=[**/*]")))
    remote.fetch(config.data, config.artifacts)
    assert not list(tmp_path.rglob("evil*"))


def test_snapshots_are_not_written_into_the_cache(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recorded").mkdir()
    given = words("hf://datasets/org/chats", tmp_path, "model.path=m")
    tree = compose([*given, "retrain.recordings=recorded"])
    with pytest.raises(ConfigError, match=r"hf://datasets/org/chats takes no snapshots"):
        retrain._check(tree, load(tree))


def test_a_pattern_may_name_a_folder_that_datasets_saved() -> None:
    names = ["saved/data-0.arrow", "saved/dataset_info.json", "more/a.jsonl"]
    data = DataConfig.model_validate({**compose([])["data"], "train": ["saved"], "sources": [],
                                      "test": ["more/*"]})  # fmt: skip
    address = remote.parse("s3://chats/x", remote.DATA)
    assert isinstance(address, remote.Address)
    assert remote._chosen(names, address, remote._globs(data.model_dump())) == sorted(names)
