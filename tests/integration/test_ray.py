"""prepare.engine=ray on a real cluster: two nodes of Ray on this machine, each with one core."""

import gzip
import json
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.core.errors import DataError, MissingRuntime
from pipeline.core.extras import EXTRAS
from pipeline.data.preparation import ray_cluster
from pipeline.data.preparation.ray_cluster import Row
from pipeline.orchestration.compose import compose
from pipeline.stages import prepare
from tests.unit.model_folders import add_weights, make_model_folder
from tests.unit.stages.test_prepare import WORDS, configure, pair, write

if missing := EXTRAS["ray"].missing():
    pytest.skip(f"{missing[0]} is not installed: {EXTRAS['ray'].command}", allow_module_level=True)

MEMORY = 80 * 2**20  # of each node's object store, about the least that Ray takes
START_SECONDS = 300  # of a node; Ray itself gives up after 30, and a busy machine may need more
PATIENCE = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_agent_register_timeout_ms": str(1000 * START_SECONDS),
    "RAY_health_check_failure_threshold": "100",
}


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Of a cluster of two nodes."""
    from ray._private import services
    from ray.cluster_utils import Cluster

    find = services.get_node

    def get_node(*given: Any) -> Any:
        end = time.monotonic() + START_SECONDS
        while True:
            try:
                return find(*given)
            except RuntimeError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.1)

    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="ray") as folder:
        for name, value in PATIENCE.items():
            patch.setenv(name, value)
        patch.setattr(services, "get_node", get_node)
        node = {"num_cpus": 1, "object_store_memory": MEMORY, "include_dashboard": False,
                "temp_dir": folder}  # fmt: skip
        cluster = Cluster(initialize_head=True, head_node_args=node)
        try:
            cluster.add_node(**node)
            yield cluster.address
        finally:
            cluster.shutdown()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return add_weights(make_model_folder(tmp_path_factory.mktemp("model"), "chatml"), 128)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of four kinds, with duplicates, a leak and rows that are refused."""
    folder = tmp_path_factory.mktemp("data")
    chance = random.Random(5)

    def rows(count: int) -> list[dict[str, str]]:
        return [pair(" ".join(chance.choices(WORDS, k=9)) + "?", chance.choice(WORDS) + ".")
                for _ in range(count)]  # fmt: skip

    lines: list[Any] = rows(400)
    lines[7:7] = ["{", lines[0], pair("How do I get a mortgage", "Anywhere."), "",
                  {**pair("A?", "B."), "reward": 1}, pair("Long?", "word " * 99)]  # fmt: skip
    write(folder / "train_a.jsonl", *lines)
    shared = [
        {"conversations": [{"from": "human", "value": row["prompt"]},
                           {"from": "gpt", "value": row["completion"]}]}
        for row in [*rows(300), *lines[30:40]]
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(shared), folder / "train_b.parquet", row_group_size=50)
    with gzip.open(folder / "train_c.jsonl.gz", "wt") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows(100))
    (folder / "train_d.md").write_text("# Help\n\n## What is a wire?\n\nA transfer.\n")
    write(folder / "test.jsonl", pair("How do I get a mortgage?", "In a branch."))
    return folder


def contents(out: Path, config: Any) -> dict[str, bytes]:
    out.mkdir()
    prepare.run(config, {}, out)
    files = [file for file in out.rglob("*") if file.is_file()]
    return {file.relative_to(out).as_posix(): file.read_bytes() for file in files}


def test_two_nodes_give_the_bytes_of_one_process(
    address: str, model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes, render = tmp_path / "nodes", ray_cluster._render_piece
    nodes.mkdir()

    def render_piece(*given: Any) -> Any:
        import ray

        where = ray.get_runtime_context()
        (nodes / f"{where.get_node_id()}-{where.get_task_id()}").touch()
        found: list[Row] = render(*given)
        return found

    tree = compose([])
    alone = contents(tmp_path / "alone", configure(tree, model, data))
    monkeypatch.setattr(ray_cluster, "_render_piece", render_piece)
    monkeypatch.setattr(ray_cluster, "LEAST_BYTES", 3000)
    shared = configure(tree, model, data, engine="ray", ray_address=address)
    assert contents(tmp_path / "shared", shared) == alone
    tasks = [file.name.partition("-")[0] for file in nodes.iterdir()]
    assert len(set(tasks)) == 2, "each node reads"
    assert len(tasks) > 8
    rejected = [json.loads(line) for line in alone["rejected.jsonl"].splitlines()]
    assert {"bad JSON", "leaks a test question", "exact duplicate"} <= {
        row["reason"] for row in rejected
    }

    # What a task refuses is refused in the same words.
    (data / "train_e.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"train_e\.parquet is truncated or damaged"):
        prepare.run(shared, {}, tmp_path / "shared")


def test_an_address_where_nobody_listens_is_refused_at_once(
    model: Path, data: Path, tmp_path: Path
) -> None:
    config = configure(compose([]), model, data, engine="ray", ray_address="127.0.0.1:1")
    with pytest.raises(MissingRuntime, match=r"prepare\.ray_address=127\.0\.0\.1:1: Ray does not"):
        prepare.run(config, {}, tmp_path)
