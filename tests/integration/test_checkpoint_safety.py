"""NeMo checkpoints: no code in them runs, and the same run writes the same files."""

import json
import os
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline.core.artifact import Artifact, hash_files
from pipeline.core.errors import ArtifactError
from pipeline.orchestration import compose
from pipeline.stages import merge
from pipeline.training import workers as launch
from pipeline.training.job import Checkpoints, Job
from pipeline.training.nemo import models as nemo
from pipeline.training.nemo.checkpoint_index import canonical, read_index
from pipeline.training.nemo.session import nemo_session
from tests.integration.training_case import make_base, make_job, train_apart


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    job = make_job(base, tmp_path_factory.mktemp("lora"), max_steps=4, checkpoint_every=3)
    launch.train_in_processes(job, lambda point: None)
    return job.out


def differing(first: Path, second: Path) -> list[str]:
    """Names of the files that are not the same in both folders."""
    one, two = hash_files(first), hash_files(second)
    return sorted(name for name in one.keys() | two.keys() if one.get(name) != two.get(name))


def test_an_import_writes_the_same_files_again(base: Path, tmp_path: Path) -> None:
    again = make_base(tmp_path / "another/place")
    assert differing(base, again) == []


@pytest.mark.parametrize("method", ["lora", "sft"])
def test_a_training_writes_the_same_files_in_another_process_and_place(
    base: Path, tmp_path: Path, method: str
) -> None:
    elsewhere = shutil.copytree(base, tmp_path / "another/place/base")
    settings: dict[str, Any] = {"method": method, "max_steps": 4, "checkpoint_every": 3}
    here = make_job(base, tmp_path / "here", **settings)
    there = make_job(elsewhere, tmp_path / "another/there", **settings)
    launch.train_in_processes(here, lambda point: None)
    train_apart(there, PYTHONHASHSEED="7")
    assert (here.out / "weights/.metadata").is_file()
    assert differing(here.out, there.out) == []


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


def in_index(folder: Path, ran: Path) -> None:
    index = read_index(folder / "weights/.metadata")
    index.planner_data = Payload(ran)
    (folder / "weights/.metadata").write_bytes(pickle.dumps(index))


def in_common(folder: Path, ran: Path) -> None:
    torch.save({"epoch": Payload(ran)}, folder / "weights/common.pt")


def in_tensor(folder: Path, ran: Path) -> None:
    index = read_index(folder / "weights/.metadata")
    place = next(iter(index.storage_data.values()))
    file = folder / "weights" / place.relative_path
    place.offset = file.stat().st_size
    torch.save([Payload(ran)], folder / "payload")
    data = (folder / "payload").read_bytes()
    (folder / "payload").unlink()
    place.length = len(data)
    with file.open("ab") as stream:
        stream.write(data)
    (folder / "weights/.metadata").write_bytes(pickle.dumps(canonical(index)))


def in_zarr(folder: Path, ran: Path) -> None:
    file = folder / "weights/metadata.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "sharded_backend": "zarr"}))


def in_class_of_megatron(folder: Path, ran: Path) -> None:
    """One that Megatron-Core adds to torch's list."""
    torch.save({"epoch": SimpleNamespace(a=1)}, folder / "weights/common.pt")


HOSTILE: dict[str, Callable[[Path, Path], None]] = {
    ".metadata": in_index,
    "common.pt": in_common,
    "weights": in_tensor,
    "metadata.json": in_zarr,
    "common.pt ": in_class_of_megatron,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_code_in_a_checkpoint_is_refused_and_does_not_run(
    base: Path, adapter: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    ran = tmp_path / "ran"
    hostile = shutil.copytree(base, tmp_path / "base")
    hostile_adapter = shutil.copytree(adapter, tmp_path / "adapter")
    HOSTILE[name](hostile, ran)
    HOSTILE[name](hostile_adapter, ran)

    def opened() -> None:
        with nemo_session():
            nemo.open_checkpoint(hostile)

    def opened_with_adapter() -> None:
        with nemo_session():
            nemo.open_checkpoint(base, adapter=hostile_adapter)

    def trained() -> None:
        job = make_job(hostile, tmp_path / "trained", max_steps=1)
        launch.train_in_processes(job, lambda point: None)

    def merged() -> None:
        run_merge(base, hostile_adapter, tmp_path / "merged")

    for read in (opened, opened_with_adapter, trained, merged):
        with pytest.raises(ArtifactError, match=name.strip()) as refused:
            read()
        assert "\n" not in str(refused.value)
        assert len(str(refused.value)) < 600
    assert not ran.exists()


def run_merge(base: Path, adapter: Path, out: Path) -> None:
    def artifact(path: Path, kind: str) -> Artifact:
        manifest: Any = SimpleNamespace(kind=kind, stage="made", digest="made")
        return Artifact(path, manifest)

    config = compose.from_command_line(["stage=merge"])[2]
    out.mkdir(exist_ok=True)
    read = {
        "import": artifact(base, "nemo_checkpoint"),
        "finetune": artifact(adapter, "nemo_adapter"),
    }
    merge.run(config, read, out)


def test_what_the_context_names_is_not_called(base: Path, adapter: Path, tmp_path: Path) -> None:
    hostile = shutil.copytree(adapter, tmp_path / "adapter")
    ran = tmp_path / "ran"
    file = hostile / "context/io.json"
    text = file.read_text()
    evil = re.sub(r'"module": "[^"]*", "name": "LoRA"', '"module": "os", "name": "system"', text)
    assert evil != text
    file.write_text(evil)
    assert {p.name for p in hostile.glob("context/*")} == {"hf", "io.json", "model.yaml"}
    (hostile / "context/object-1").write_bytes(pickle.dumps(Payload(ran)))
    (hostile / "weights/modelopt_state").mkdir()
    torch.save({"evil": Payload(ran)}, hostile / "weights/modelopt_state/common.pt")
    with nemo_session():
        nemo.open_checkpoint(base, adapter=hostile)
    assert not ran.exists()


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"method": "os.system", "rank": 8, "alpha": 16, "dropout": 0.0}',
             '{"method": "lora", "rank": -8, "alpha": 16, "dropout": 0.0}']
)  # fmt: skip
def test_an_adapter_without_sizes_is_refused(
    base: Path, adapter: Path, tmp_path: Path, text: str
) -> None:
    damaged = shutil.copytree(adapter, tmp_path / "adapter")
    (damaged / "adapter.json").write_text(text)
    with nemo_session(), pytest.raises(ArtifactError, match=r"adapter\.json does not describe"):
        nemo.open_checkpoint(base, adapter=damaged)


@pytest.fixture(scope="module")
def interrupted(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A job with a checkpoint to resume from."""
    job = make_job(base, tmp_path_factory.mktemp("resumed"), max_steps=4, checkpoint_every=3)
    launch.train_in_processes(job, lambda point: None)
    assert Checkpoints(job.scratch, job.identity).newest()
    return job


def test_a_checkpoint_of_a_run_is_resumed_from(interrupted: Job) -> None:
    shutil.rmtree(interrupted.out)  # as stage=finetune does
    assert launch.train_in_processes(interrupted, lambda point: None).resumed_from == 3


@pytest.mark.parametrize("name", HOSTILE)
def test_code_in_a_checkpoint_to_resume_from_does_not_run(
    interrupted: Job, tmp_path: Path, name: str
) -> None:
    newest = Checkpoints(interrupted.scratch, interrupted.identity).newest()
    assert newest
    kept = shutil.copytree(newest, tmp_path / "kept")
    try:
        HOSTILE[name](newest, tmp_path / "ran")
        with pytest.raises(ArtifactError, match=r"remove .* to train from the start") as refused:
            launch.train_in_processes(interrupted, lambda point: None)
        assert "\n" not in str(refused.value)
        assert not (tmp_path / "ran").exists()
    finally:
        shutil.rmtree(newest)
        shutil.copytree(kept, newest)


def test_a_shard_that_was_cut_is_refused_in_a_line(base: Path, tmp_path: Path) -> None:
    """That of a run to resume from, say: an artifact's digests find it before."""
    damaged = shutil.copytree(base, tmp_path / "base")
    shard = damaged / "weights/__0_0.distcp"
    os.truncate(shard, shard.stat().st_size // 2)
    with nemo_session(), pytest.raises(ArtifactError, match="weights cannot be read") as refused:
        nemo.open_checkpoint(damaged)
    assert "\n" not in str(refused.value)
    with pytest.raises(ArtifactError, match="weights cannot be read") as refused:
        launch.train_in_processes(make_job(damaged, tmp_path, max_steps=1), lambda point: None)
    assert "\n" not in str(refused.value)
