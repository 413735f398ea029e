"""The progress of a run says steps and epochs."""

import io
from typing import Any

import pytest
from rich.console import Console

from pipeline.training import progress
from pipeline.training.job import Point
from pipeline.training.length import Length
from pipeline.training.progress import show_progress

POINTS = [Point(step, 2.0, 1e-3, 1.0, 50.0, 1.5 if step == 4 else None) for step in (3, 4)]


@pytest.mark.parametrize("terminal", [False, True])
def test_steps_and_epochs_are_shown_and_tracked(
    terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = Console(file=io.StringIO(), width=200, force_terminal=terminal, highlight=False)
    monkeypatch.setattr(progress, "get_console", lambda: shown)
    monkeypatch.setattr("pipeline.core.console.get_console", lambda: shown)
    tracked: list[tuple[dict[str, Any], int]] = []
    monkeypatch.setattr(
        progress.tracking, "log_metrics", lambda values, step: tracked.append((values, step))
    )
    with show_progress(Length(steps=4, batch=64, rows=100), 2) as report:
        for point in POINTS:
            report(point)
    text = shown.file.getvalue()  # type: ignore[attr-defined]
    if terminal:
        assert "epoch 2.56/2.6" in text
    else:
        (line,) = text.splitlines()
        assert line.startswith("step 4/4 (epoch 2.56/2.6) loss 2.0000 validation 1.5000")
    ((values, step),) = tracked
    assert step == 4
    assert values["epoch"] == 2.56
