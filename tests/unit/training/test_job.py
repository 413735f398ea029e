"""Checkpoints of a training run on disk, whatever moment it is killed at; jobs as JSON."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.training.job import Checkpoints, Job, Point, Trained
from tests.finetune_settings import finetune_settings

CURVE = [Point(step, 3.0 / step, 1e-3, 1.0, 100.0) for step in range(1, 5)]


def write(checkpoints: Checkpoints, step: int, *, main: bool = True) -> None:
    with checkpoints.writing(step, CURVE[:step], main=main) as folder:
        (folder / "weights").mkdir()


def test_the_newest_checkpoint_replaces_the_older_ones(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "job")
    assert checkpoints.newest() is None
    assert checkpoints.curve() == []
    write(checkpoints, 2)
    write(checkpoints, 4)
    assert [p.name for p in tmp_path.iterdir()] == ["step-000000004"]
    assert Checkpoints(tmp_path, "job").curve() == CURVE


def test_a_half_written_checkpoint_is_ignored_and_then_removed(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "job")
    write(checkpoints, 2)

    def killed() -> None:
        with checkpoints.writing(3, CURVE[:3], main=True) as folder:
            (folder / "weights").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        killed()
    assert checkpoints.newest() == tmp_path / "step-000000002"
    assert checkpoints.curve() == CURVE[:2]
    write(checkpoints, 3)
    assert [p.name for p in tmp_path.iterdir()] == ["step-000000003"]


@pytest.mark.parametrize("torn", ["", '{"identity": "job", "curve": [{"st', "\0\0\0"])
def test_a_checkpoint_that_a_power_cut_tore_is_none(tmp_path: Path, torn: str) -> None:
    checkpoints = Checkpoints(tmp_path, "job")
    write(checkpoints, 2)
    (tmp_path / "step-000000002/progress.json").write_text(torn)
    assert checkpoints.newest() is None
    assert checkpoints.curve() == []
    write(checkpoints, 2)
    assert checkpoints.curve() == CURVE[:2]


def test_a_checkpoint_of_other_settings_is_not_gone_on_from(tmp_path: Path) -> None:
    write(Checkpoints(tmp_path, "job"), 2)
    assert Checkpoints(tmp_path, "other job").newest() is None
    assert Checkpoints(tmp_path, "other job").curve() == []


def make_job(**changes: Any) -> Job:
    """A job with changes of its own fields or of its settings'."""
    fields: dict[str, Any] = {name: Path(name) for name in ("hf", "weights", "train_rows")}
    fields |= {"validation_rows": None, "seed": 1, "max_length": 64, "nodes": 1, "made_from": ""}
    fields |= {"scratch": Path("scratch"), "out": Path("out")}
    own = {name: changes.pop(name) for name in fields.keys() & changes.keys()}
    return Job(settings=finetune_settings(**changes), **fields | own)


def test_a_job_and_its_result_survive_json() -> None:
    assert Job.from_json(make_job().to_json()) == make_job()
    trained = Trained(CURVE, 1.0, 0.1, 100, 0)
    assert Trained.from_json(trained.to_json()) == trained


def test_what_a_checkpoint_depends_on() -> None:
    assert make_job(out=Path("elsewhere")).identity == make_job().identity
    assert make_job(learning_rate=2e-3).identity != make_job().identity
    assert make_job(rank=4).identity != make_job().identity
    assert make_job(seed=2).identity != make_job().identity
    assert make_job(made_from="other rows").identity != make_job().identity
    # The same sums in other portions.
    shared = make_job(micro_batch_size=2, processes=8, nodes=2, tensor=2, pack_length=128)
    assert shared.identity == make_job().identity


def test_a_checkpoint_is_taken_over_from_a_run_in_other_portions(tmp_path: Path) -> None:
    for name, identity, step in (("a", "job", 2), ("b", "job", 3), ("c", "other", 4)):
        write(Checkpoints(tmp_path / name, identity), step)
    mine = Checkpoints(tmp_path / "mine", "job")
    mine.adopt([tmp_path / name for name in "abc"] + [tmp_path / "nowhere"])
    assert mine.newest() == tmp_path / "mine/step-000000003"
    assert mine.curve() == CURVE[:3]
    assert Checkpoints(tmp_path / "b", "job").newest() is None
    mine.adopt([tmp_path / "a"])  # one of its own is there
    assert mine.curve() == CURVE[:3]
