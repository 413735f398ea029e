"""Progress of a training run: a line and metrics for each step, then its loss curve as files."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.core.console import get_console, progress
from pipeline.tracking import client as tracking
from pipeline.training.job import Point
from pipeline.training.length import Length, in_words

METRICS_EVERY = 5  # steps between metrics for the tracker
LINE_SECONDS = 10.0  # between lines when there is no terminal


@contextmanager
def show_progress(length: Length, done: int) -> Iterator[Callable[[Point], None]]:
    """Yields a function to call with each step: it shows a live line and logs metrics.

    length: of the whole run. done: steps of an earlier, interrupted attempt.
    """
    console, steps = get_console(), length.steps

    def epoch(point: Point) -> str:
        return f"{length.epoch(point.step):.2f}/{in_words(length.epochs)}"

    if console.is_terminal:
        with progress("epoch", "loss", "speed") as bar:
            task = bar.add_task("train", total=steps, completed=done, epoch="", loss="", speed="")

            def show(point: Point) -> None:
                loss, speed = f"{point.loss:.4f}", f"{point.tokens_per_second:,.0f} tokens/s"
                bar.update(task, completed=point.step, epoch=epoch(point), loss=loss, speed=speed)

            yield _logged(show, length)
        return
    began = shown = time.monotonic()

    def print_line(point: Point) -> None:
        nonlocal shown
        now = time.monotonic()
        if now - shown < LINE_SECONDS and point.step != steps and point.validation_loss is None:
            return
        shown = now
        left = (now - began) / (point.step - done) * (steps - point.step)
        checked = point.validation_loss
        validation = "" if checked is None else f" validation {checked:.4f}"
        console.print(
            f"step {point.step}/{steps} (epoch {epoch(point)}) loss {point.loss:.4f}{validation} "
            f"{point.tokens_per_second:,.0f} tokens/s {left:,.0f} s left"
        )

    yield _logged(print_line, length)


def _logged(show: Callable[[Point], None], length: Length) -> Callable[[Point], None]:
    def report(point: Point) -> None:
        show(point)
        if point.step % METRICS_EVERY == 0 or point.validation_loss is not None or point.step == 1:
            figures = {**point.values(), "epoch": length.epoch(point.step)}
            tracking.log_metrics(figures, step=point.step)

    return report


def _without_speed(point: Point) -> dict[str, Any]:
    fields = asdict(point)
    del fields["tokens_per_second"]
    return fields | fields.pop("figures")


def write_loss_curve(
    folder: Path, curve: Sequence[Point], *, title: str, unit: str = "nats a token"
) -> None:
    """Write curve.json (a list of points) and loss_curve.png into the folder.

    Without the speed of each step, so that the same training writes the same files; the tracker has
    it.
    """
    points = [_without_speed(p) for p in curve]
    (folder / "curve.json").write_text(json.dumps(points, indent=1) + "\n")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot([p.step for p in curve], [p.loss for p in curve], lw=0.8, alpha=0.7, label="training")
    checked = [(p.step, p.validation_loss) for p in curve if p.validation_loss is not None]
    if checked:
        axes.plot(*zip(*checked, strict=True), "o-", ms=4, label="validation")
    axes.set(xlabel="step", ylabel=f"loss ({unit})", title=title)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(folder / "loss_curve.png")
