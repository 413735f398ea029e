"""Compares new results with old ones, and says what moved beyond noise.

    python -m bench.compare OLD.json NEW.json [--noise 0.03]

Figures of the same place in both files are compared: speeds (higher is better), times and memory
(lower is better). What else the files hold is left out. Noise is the larger one of --noise and the
spread of the readings beside a figure, where there are some. The exit code is 1 if a figure got
worse. Cards and hosts differ by 3 % and more, so that results of different hosts only give a hint.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

NOISE = 0.03
HIGHER = ("per_second", "tflops", "tokens_per_joule", "ratio")
LOWER = ("_ms", "ms", "seconds", "_gib", "_s", "joules")
ORIGIN = ("command", "commit", "date", "hardware", "versions")
EXPECTED = "plan"  # of a forecast beside a figure


class Move(NamedTuple):
    """A figure in both files. worse: beyond noise; None if it is within."""

    place: str
    old: float
    new: float
    worse: bool | None

    def __str__(self) -> str:
        word = {True: "worse", False: "better", None: "same"}[self.worse]
        change = f"{self.new / self.old - 1:+7.1%}"
        return f"{word:6} {change}  {self.old:g} -> {self.new:g}  {self.place}"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--noise", type=float, default=NOISE, help="as a share of the old figure")
    given = parser.parse_args()
    old, new = (json.loads(file.read_text()) for file in (given.old, given.new))
    if old.get("hardware") != new.get("hardware"):
        print("the hardware differs: the figures only give a hint")
    moves = list(compare(old, new, given.noise))
    if not moves:
        print(f"{given.old} and {given.new} have no figure in common")
        return 2
    for move in moves:
        if move.worse is not None:
            print(move)
    same = sum(move.worse is None for move in moves)
    print(f"{len(moves)} figures, {same} of them within noise")
    return int(any(move.worse for move in moves))


def compare(old: Any, new: Any, noise: float) -> Iterator[Move]:
    """Each figure that both documents have, in the order of the new one."""
    before = dict(_figures(old))
    for place, (value, spread, better) in _figures(new):
        if place in before and before[place][0] > 0:
            was, other, _ = before[place]
            change = (value - was) / was
            if abs(change) <= max(noise, spread, other):
                worse = None
            else:
                worse = (change < 0) == (better > 0)
            yield Move(place, was, value, worse)


def _figures(
    document: Any, place: str = "", direction: int = 0
) -> Iterator[tuple[str, tuple[float, float, int]]]:
    """Place of each figure, its value, the relative spread of its readings, and its direction.

    direction: of figures whose own name says none, such as a median's.
    """
    if not isinstance(document, Mapping):
        return
    spread = _spread(document.get("readings"))
    for name, value in document.items():
        if name == EXPECTED or (not place and name in ORIGIN):
            continue
        here = f"{place}/{name}" if place else name
        better = _direction(name) or direction
        if not isinstance(value, int | float):
            yield from _figures(value, here, better)
        elif better and not isinstance(value, bool):
            yield here, (float(value), spread if better > 0 else 0.0, better)


def _spread(readings: Any) -> float:
    if not isinstance(readings, list) or len(readings) < 2 or min(readings) <= 0:
        return 0.0
    return float((max(readings) - min(readings)) / min(readings))


def _direction(name: str) -> int:
    """1 if higher is better, -1 if lower is, 0 if a figure is neither."""
    if any(part in name for part in HIGHER):
        return 1
    return -1 if name.endswith(LOWER) else 0


if __name__ == "__main__":
    sys.exit(main())
