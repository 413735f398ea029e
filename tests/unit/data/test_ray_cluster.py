"""Rows by tasks: pieces, order and errors, with a stand-in that runs each task here.

What a task is given and gives back goes through pickle, as on a cluster.
"""

import json
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.errors import DataError, PipelineError
from pipeline.data.preparation import ray_cluster
from pipeline.orchestration.compose import compose
from pipeline.stages import prepare
from tests.unit.model_folders import add_weights, make_model_folder
from tests.unit.stages.test_prepare import configure, pair, write

WORDS = "card loan wire fee limit branch rate form check safe note bank".split()


class Cluster:
    """The part of Ray that is used. tasks: how many ran."""

    class exceptions:
        class RayError(Exception):
            pass

    def __init__(self) -> None:
        self.tasks = 0
        self.broken = False

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0}

    def remote(self, **_: Any) -> Callable[[Callable[..., Any]], Any]:
        cluster = self

        class Remote:
            def __init__(self, function: Callable[..., Any]) -> None:
                self.function = function

            def remote(self, *arguments: Any) -> bytes:
                cluster.tasks += 1
                given = pickle.loads(pickle.dumps(arguments))
                return pickle.dumps(self.function(*given))

        return Remote

    def get(self, reference: bytes) -> Any:
        if self.broken:
            raise self.exceptions.RayError("a worker died\nits node ran out of memory")
        return pickle.loads(reference)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    found = Cluster()

    @contextmanager
    def opened(_: str | None) -> Iterator[Cluster]:
        yield found

    monkeypatch.setattr(ray_cluster, "_cluster", opened)
    monkeypatch.setattr(ray_cluster, "require", lambda *_: None)
    monkeypatch.setattr(ray_cluster, "LEAST_BYTES", 1000)
    return found


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return add_weights(make_model_folder(tmp_path_factory.mktemp("model"), "chatml"), 128)


@pytest.fixture(scope="module")
def tree() -> dict[str, Any]:
    return compose([])


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder by a relative path, as the defaults have it."""
    monkeypatch.chdir(tmp_path)
    folder = Path("data")
    folder.mkdir()
    rows: list[Any] = [
        pair(f"What of the {a} {b}?", f"The {a} {b} is fine.") for a in WORDS for b in WORDS
    ]
    rows[7:7] = ["{", rows[0], pair("How do I get a mortgage", "Anywhere."), "",
                 {**pair("A?", "B."), "reward": 1}, pair("Long?", "word " * 99)]  # fmt: skip
    write(folder / "train_a.jsonl", *rows)
    write(folder / "train_b.jsonl", *rows[:20])
    write(folder / "test.jsonl", pair("How do I get a mortgage?", "In a branch."))
    return folder


def contents(config: Any, out: Path) -> dict[str, bytes]:
    out.mkdir()
    prepare.run(config, {}, out)
    files = [file for file in out.rglob("*") if file.is_file()]
    return {file.relative_to(out).as_posix(): file.read_bytes() for file in files}


def test_tasks_give_the_bytes_of_one_process(
    tree: dict[str, Any], model: Path, data: Path, tmp_path: Path, cluster: Cluster
) -> None:
    alone = contents(configure(tree, model, data), tmp_path / "alone")
    assert cluster.tasks == 0
    shared = contents(configure(tree, model, data, engine="ray"), tmp_path / "shared")
    assert cluster.tasks > 8
    assert shared == alone


def test_test_questions_are_chosen_alike(
    tree: dict[str, Any], model: Path, data: Path, tmp_path: Path, cluster: Cluster
) -> None:
    found = []
    for engine in ("local", "ray"):
        config = configure(tree, model, data, engine=engine)
        files = config.data.but(test=(), test_share=0.2)
        shared = config.model_copy(update={"data": files})
        found.append(contents(shared, tmp_path / engine))
    assert found[0] == found[1]


def test_tasks_mask_personal_data(
    tree: dict[str, Any], model: Path, data: Path, tmp_path: Path, cluster: Cluster
) -> None:
    pytest.importorskip("presidio_analyzer", reason="make setup EXTRA=pii")
    write(data / "train_b.jsonl", pair("Who is ann.lee@example.org?", "A client."))
    found = [
        contents(configure(tree, model, data, engine=engine, mask_pii=["EMAIL_ADDRESS"]),
                 tmp_path / engine)
        for engine in ("local", "ray")
    ]  # fmt: skip
    assert json.loads(found[0]["statistics.json"])["masked"] == {"EMAIL_ADDRESS": 1}
    assert found[0] == found[1]


def test_what_a_task_refuses_is_refused(
    tree: dict[str, Any], model: Path, data: Path, tmp_path: Path, cluster: Cluster
) -> None:
    (data / "train_c.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"train_c\.parquet is truncated or damaged"):
        prepare.run(configure(tree, model, data, engine="ray"), {}, tmp_path)
    (data / "train_c.parquet").unlink()
    cluster.broken = True
    with pytest.raises(PipelineError, match=r"that reads data/test\.jsonl failed \(its node"):
        prepare.run(configure(tree, model, data, engine="ray"), {}, tmp_path)
