"""Models that are fetched: what is asked for, what is recorded, and each failure in one line."""

import errno
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from huggingface_hub import constants

from pipeline.core.errors import DataError, ResourceError
from pipeline.models.checks import check_folder
from pipeline.models.sources import fetching
from pipeline.models.sources.fetching import fetch, is_whole, local_folder, provenance
from tests.integration.hub_server import HubServer, point_at
from tests.unit.model_folders import add_random_weights, edit, make_model_folder

NEVER = ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "modeling_x.py", "README.md",
         "original/consolidated.00.pth", "model.Q4_K_M.gguf", "onnx/model.onnx")  # fmt: skip
NEEDED = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = add_random_weights(make_model_folder(tmp_path / "published", "chatml"))
    for name in NEVER:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x" * 2000)
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    fetching._place.cache_clear()
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with HubServer() as server:
        point_at(server.url, tmp_path / "cache", monkeypatch)
        yield server
    fetching._place.cache_clear()


def test_only_what_a_model_needs_is_fetched(hub: HubServer, folder: Path, tmp_path: Path) -> None:
    commit = hub.add("org/model", folder)
    artifacts = tmp_path / "artifacts"
    place = Path(local_folder("hf://org/model", artifacts))
    assert hub.files_asked_for() == ["config.json"]  # all that planning needs
    assert not is_whole(place, artifacts)
    fetch(place, artifacts)
    assert sorted(hub.files_asked_for()) == NEEDED
    assert check_folder(place) == check_folder(folder)
    found = provenance(place, artifacts)
    assert found is not None
    assert (found["source"], found["revision"]) == ("hf://org/model", commit)
    asked = len(hub.seen)
    assert local_folder("hf://org/model", artifacts) == str(place)
    fetch(place, artifacts)
    assert len(hub.seen) == asked  # nothing is asked again
    assert provenance(folder, artifacts) is None


def test_a_branch_is_resolved_once_for_a_project(
    hub: HubServer, folder: Path, tmp_path: Path
) -> None:
    first = hub.add("org/model", folder)
    place = local_folder("hf://org/model@main", tmp_path / "one")
    edit("config.json", rope_theta=5e5)(folder)
    second = hub.add("org/model", folder)
    assert first != second
    assert local_folder("hf://org/model@main", tmp_path / "one") == place
    assert Path(place).name == first
    assert Path(local_folder("hf://org/model@main", tmp_path / "two")).name == second
    assert Path(local_folder(f"hf://org/model@{second}", tmp_path / "one")).name == second
    assert local_folder("hf://org/model@main", tmp_path / "one" / "sweeps" / "a" / "b") == place


def test_shards_are_those_of_the_index(hub: HubServer, folder: Path, tmp_path: Path) -> None:
    shard = "model-00001-of-00001.safetensors"
    (folder / "model.safetensors").rename(folder / shard)
    (folder / "other.safetensors").write_bytes(b"x" * 2000)
    index = {"metadata": {}, "weight_map": {"model.norm.weight": shard}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    hub.add("org/model", folder)
    place = Path(local_folder("hf://org/model", tmp_path))
    fetch(place, tmp_path)
    assert shard in hub.files_asked_for()
    assert "other.safetensors" not in hub.files_asked_for()
    hub.add("org/half", folder)
    index["weight_map"]["lm_head.weight"] = "gone.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    hub.add("org/half", folder)
    half = Path(local_folder("hf://org/half", tmp_path))
    with pytest.raises(DataError, match=r"names gone\.safetensors, which is not there"):
        fetch(half, tmp_path)


def test_a_download_that_was_interrupted_resumes(
    hub: HubServer, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("org/model", folder)
    place = Path(local_folder("hf://org/model", tmp_path))
    hub.cut["model.safetensors"] = 100_000
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000)
    with suppress(DataError):  # where the library does not resume by itself
        fetch(place, tmp_path)
    fetch(place, tmp_path)
    assert hub.ranges == ["bytes=100000-"]
    assert (place / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert is_whole(place, tmp_path)


def test_a_file_with_another_digest_is_removed(
    hub: HubServer, folder: Path, tmp_path: Path
) -> None:
    hub.add("org/model", folder)
    place = Path(local_folder("hf://org/model", tmp_path))
    hub.corrupt = {"tokenizer.json"}
    with pytest.raises(DataError, match=r"tokenizer\.json arrived with another digest .* again"):
        fetch(place, tmp_path)
    assert not is_whole(place, tmp_path)
    hub.corrupt = set()
    fetch(place, tmp_path)
    assert is_whole(place, tmp_path)


def test_what_may_not_be_read(hub: HubServer, folder: Path, tmp_path: Path,
                              monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    hub.add("org/private", folder, token="hf_" + "a" * 20)
    hub.add("org/gated", folder, token="hf_" + "a" * 20, gated=True)
    with pytest.raises(DataError, match="is private: correct the name, or give a token in"):
        local_folder("hf://org/private", tmp_path)
    with pytest.raises(DataError, match="is gated: accept its terms on its page, and set HF_TOKEN"):
        local_folder("hf://org/gated", tmp_path)
    monkeypatch.setenv("HF_TOKEN", "hf_" + "b" * 20)
    with pytest.raises(DataError, match="give HF_TOKEN that may read it") as refused:
        local_folder("hf://org/private", tmp_path)
    assert "bbbb" not in str(refused.value)
    monkeypatch.setenv("HF_TOKEN", "hf_" + "a" * 20)
    place = Path(local_folder("hf://org/private", tmp_path))
    fetch(place, tmp_path)
    assert "aaaa" not in (tmp_path / fetching.RECORDS).read_text()


def test_what_is_not_there(hub: HubServer, folder: Path, tmp_path: Path) -> None:
    hub.add("org/model", folder)
    for address, words in (
        ("hf://org/other", "hf://org/other is not on the hub"),
        ("hf://org/model@v9", "hf://org/model@v9: there is no such revision"),
        (f"hf://org/model@{'0' * 40}", "there is no such revision"),
    ):
        with pytest.raises(DataError, match=words):
            local_folder(address, tmp_path)
    (folder / "model.safetensors").unlink()
    hub.add("org/pickles", folder)
    place = Path(local_folder("hf://org/pickles", tmp_path))
    with pytest.raises(DataError, match="it has pickles, and only safetensors are fetched"):
        fetch(place, tmp_path)
    (folder / "config.json").rename(folder / "adapter_config.json")
    hub.add("org/adapter", folder)
    with pytest.raises(DataError, match=r"has no config\.json"):
        local_folder("hf://org/adapter", tmp_path)
    assert list(json.loads((tmp_path / fetching.RECORDS).read_text())) == ["hf://org/pickles"]


def test_a_hub_that_cannot_be_reached_or_fails(
    hub: HubServer, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("org/model", folder)
    hub.status = 503
    with pytest.raises(
        DataError, match="the hub answered 503: wait, and run the same command again"
    ):
        local_folder("hf://org/model", tmp_path)
    point_at("http://127.0.0.1:9", tmp_path / "cache", monkeypatch)
    with pytest.raises(DataError, match=r"cannot be reached \(Connection refused\)"):
        local_folder("hf://org/model", tmp_path)


def test_offline_the_cache_is_enough(
    hub: HubServer, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = hub.add("org/model", folder)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"is not in the cache .* and HF_HUB_OFFLINE is set"):
        local_folder("hf://org/model", tmp_path / "one")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    place = Path(local_folder(f"hf://org/model@{commit}", tmp_path / "one"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    fetching._place.cache_clear()
    with pytest.raises(DataError, match=r"has no model\.safetensors|is not in the cache"):
        fetch(place, tmp_path / "one")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    fetching._place.cache_clear()
    local_folder("hf://org/model", tmp_path / "three")  # which notes the branch in the cache
    fetch(place, tmp_path / "one")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    fetching._place.cache_clear()
    asked = len(hub.seen)
    offline = Path(local_folder(f"hf://org/model@{commit}", tmp_path / "two"))
    fetch(offline, tmp_path / "two")
    assert (offline, len(hub.seen)) == (place, asked)
    one, two = (provenance(place, tmp_path / name) for name in ("one", "two"))
    assert one == two


def test_a_full_disk_is_named(
    hub: HubServer, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("org/model", folder)
    place = Path(local_folder("hf://org/model", tmp_path))

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("huggingface_hub.file_download.http_get", full)
    with pytest.raises(ResourceError, match="is full: free some space, or set HF_HOME"):
        fetch(place, tmp_path)


def test_a_broken_record_is_named(hub: HubServer, tmp_path: Path) -> None:
    for text in ("{", '{"hf://a/b": {}}', '{"hf://a/b": {"revision": "../.."}}', "[1]"):
        (tmp_path / fetching.RECORDS).write_text(text)
        with pytest.raises(DataError, match=r"\.sources\.json, the record .*: delete it"):
            local_folder("hf://org/model", tmp_path)
