"""When a run ends early, and which step's weights it keeps: functions of its loss curve."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from pipeline.training.best_weights import BestWeights
from pipeline.training.job import Point
from pipeline.training.validation import best, ends_early, kept, why_kept
from tests.finetune_settings import finetune_settings


def curve(losses: Sequence[float | None]) -> list[Point]:
    return [Point(step, 1.0, 1e-3, 1.0, 9.0, loss) for step, loss in enumerate(losses, start=1)]


@pytest.mark.parametrize(
    ("losses", "patience", "min_improvement", "ends"),
    [
        ([3.0, 2.0, 2.1, 2.2], 2, 0.0, True),
        ([3.0, 2.0, 2.1, 2.2], 3, 0.0, False),
        ([3.0, 2.0, 2.1, 1.9, 2.0], 2, 0.0, False),  # an improvement in between
        ([3.0, 2.0, 2.0, 2.0], 2, 0.0, True),  # equal is no improvement
        ([3.0, 2.95, 2.9], 2, 0.2, True),  # improvements that are too small
        ([3.0, 2.9, 2.8, 2.75], 2, 0.2, False),  # together they are one
        ([None, 3.0, None, None, None], 2, 0.0, False),  # steps without a validation
        ([3.0] * 9, None, 0.0, False),
    ],
)
def test_when_a_run_ends(
    losses: list[float | None], patience: int | None, min_improvement: float, ends: bool
) -> None:
    settings = finetune_settings(patience=patience, min_improvement=min_improvement)
    assert ends_early(settings.early_stopping, curve(losses)) == ends


def test_the_best_point_is_the_earliest_of_equal_ones() -> None:
    found = best(curve([None, 3.0, 2.0, 2.0, 2.5]))
    assert found
    assert found.step == 3
    assert best(curve([None])) is None


def test_what_is_kept_and_why() -> None:
    points = curve([3.0, 2.0, 2.1, 2.2])
    last = finetune_settings(keep="last")
    assert kept(last, points).step == 4
    assert why_kept(last, points, 4) == "step 4 of 4 was kept: it is the last"
    lowest = finetune_settings(keep="best", patience=2, min_improvement=0.01)
    assert kept(lowest, points).step == 2
    assert why_kept(lowest, points, 90) == (
        "step 2 of 90 was kept: its validation loss, 2.0000, is the lowest; training ended early "
        "at step 4, as 2 validations did not improve the loss by 0.01"
    )


def test_best_weights_outlive_a_kill_and_older_ones_do_not(tmp_path: Path) -> None:
    weights = BestWeights(tmp_path / "checkpoints", "a" * 64)
    for step in (2, 4):
        with weights.writing(step, main=True) as folder:
            (folder / "weights").write_text(str(step))

    def killed() -> None:
        with weights.writing(6, main=True) as folder:
            (folder / "weights").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        killed()
    assert [weights.path(step).is_dir() for step in (2, 4, 6)] == [True, True, False]
    weights.remove_others(4)
    assert (weights.path(4) / "weights").read_text() == "4"
    assert [p.name for p in (tmp_path / "best").iterdir()] == [weights.path(4).name]
    # A run with other micro-batches, in another folder, takes them over.
    (tmp_path / "b").mkdir()
    other = BestWeights(tmp_path / "b/checkpoints", "a" * 64)
    other.adopt([tmp_path / "checkpoints"])
    assert (other.path(4) / "weights").is_file()
    assert not weights.path(4).is_dir()
    # Another job does not.
    third = BestWeights(tmp_path / "c/checkpoints", "b" * 64)
    third.adopt([tmp_path / "b/checkpoints"])
    assert not third.path(4).is_dir()
