"""Times of several ways to do one thing, taken in turn so that they share what the machine does."""

import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

ROUNDS = 7


def seconds_of(ways: Mapping[str, Callable[[], Any]], rounds: int = ROUNDS) -> dict[str, float]:
    """Least seconds of each, after one round that does not count: other work on the machine only
    adds to them."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, do in ways.items():
            begin = time.perf_counter()
            do()
            times[name].append(time.perf_counter() - begin)
    return {name: min(found[1:]) for name, found in times.items()}


def import_ms(modules: Mapping[str, str], python: str = sys.executable) -> dict[str, float]:
    """Milliseconds that `import …` adds to the start of a Python; modules: statements by name."""
    statements = {"": "pass", **modules}
    seconds = seconds_of({name: command([python, "-c", s]) for name, s in statements.items()})
    return {name: round(1e3 * (seconds[name] - seconds[""]), 1) for name in modules}


def command(words: Sequence[str], **options: Any) -> Callable[[], Any]:
    """A command to take the time of; what it says is not looked at."""
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return lambda: subprocess.run(words, check=False, **quiet, **options)
