"""prepare on a Ray cluster of two nodes: the bytes of one process."""

import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.core.errors import DataError
from pipeline.data.preparation import ray_cluster
from pipeline.orchestration.compose import compose
from pipeline.stages import prepare
from tests.unit.model_folders import add_weights, make_model_folder
from tests.unit.stages.test_prepare import configure, pair, write

os.environ.update(
    RAY_USAGE_STATS_ENABLED="0",
    # A busy machine takes longer to start a node than Ray allows by default.
    RAY_raylet_start_wait_time_s="300",
    RAY_agent_register_timeout_ms="300000",
)
pytest.importorskip("ray")

WORDS = "card loan wire fee limit branch rate form check safe note bank".split()


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Of a cluster of two nodes with a core each."""
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
    cluster = Cluster()
    try:
        for head in ({"include_dashboard": False}, {}):
            started(lambda more=head: cluster.add_node(**node, **more))
        cluster.wait_for_nodes()
        yield cluster.address
    finally:
        cluster.shutdown()


def started(start: Callable[[], Any]) -> None:
    """A node gives up if its agent takes longer than Ray allows, as on a busy machine."""
    for attempt in range(3):
        try:
            start()
            return
        except Exception as error:
            if attempt == 2 or "timed out" not in str(error):
                raise


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return add_weights(make_model_folder(tmp_path_factory.mktemp("model"), "chatml"), 512)


@pytest.fixture(scope="module")
def tree() -> dict[str, Any]:
    return compose([])


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Files of several kinds, with rows of every fate."""
    draw = random.Random(1)
    folder = tmp_path / "data"
    folder.mkdir()

    def rows(count: int) -> list[dict[str, Any]]:
        made = []
        for _ in range(count):
            words = " ".join(draw.choices(WORDS, k=4))
            made.append({**pair(f"What of the {words}?", f"It is {words}."), "tags": [words[:4]]})
        return made

    lines: list[Any] = rows(600)
    lines[5:5] = ["{", pair("How do I get a mortgage", "Anywhere."), "", lines[0],
                  {**pair("A?", "B."), "reward": 1}, pair("Long?", "word " * 900)]  # fmt: skip
    write(folder / "train_lines.jsonl", *lines)
    (folder / "train_array.json").write_text(json.dumps(rows(40)))
    table = pa.Table.from_pylist(rows(300))
    pq.write_table(table, folder / "train_table.parquet", row_group_size=50)
    write(folder / "test.jsonl", pair("How do I get a mortgage?", "In a branch."), *rows(30))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


def prepared(out: Path, config: Any) -> dict[str, bytes]:
    out.mkdir()
    prepare.run(config, {}, out)
    return contents(out)


def test_two_nodes_give_the_bytes_of_one_process(
    tree: dict[str, Any], model: Path, data: Path, tmp_path: Path, address: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(ray_cluster, "LEAST_BYTES", 4096)
    nodes = tmp_path / "nodes"
    nodes.mkdir()
    monkeypatch.setattr(ray_cluster, "_render_piece", noting(nodes))
    alone = prepared(tmp_path / "alone", configure(tree, model, data, max_length=512))
    assert len(json.loads(alone["statistics.json"])["rejected"]) >= 5
    settings = {"max_length": 512, "engine": "ray", "ray_address": address}
    shared = prepared(tmp_path / "shared", configure(tree, model, data, **settings))
    assert shared.keys() == alone.keys()
    assert [name for name in alone if alone[name] != shared[name]] == []
    tasks = [file.name.split("-")[0] for file in nodes.iterdir()]
    assert len(set(tasks)) == 2
    assert len(tasks) > 8


def noting(folder: Path) -> Callable[..., Any]:
    """The task, which notes on which node it ran."""

    def task(*arguments: Any) -> Any:
        import uuid

        import ray

        from pipeline.data.preparation.ray_cluster import _render_piece

        node = ray.get_runtime_context().get_node_id()
        (folder / f"{node}-{uuid.uuid4().hex}").touch()
        return _render_piece(*arguments)

    return task


def test_a_damaged_file_is_refused_as_by_one_process(
    tree: dict[str, Any], model: Path, data: Path, tmp_path: Path, address: str
) -> None:
    file = data / "train_array.json"
    file.write_bytes(file.read_bytes()[:-30])
    said = []
    for settings in ({}, {"engine": "ray", "ray_address": address}):
        with pytest.raises(DataError) as caught:
            prepare.run(configure(tree, model, data, max_length=512, **settings), {}, tmp_path)
        said.append(str(caught.value))
    assert said[0] == said[1]
    assert "\n" not in said[1]
