"""What counts as a regression between two files of results."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import compare

OLD: dict[str, Any] = {
    "commit": "a",
    "hardware": {"cores": 2},
    "cases": {
        "one": {
            "tokens_per_second_a_gpu": 1000,
            "readings": [990, 1010],
            "plan": {"tokens_per_second_a_gpu": 900},
            "peak_memory_gib": 50.0,
            "requests": 3,
        }
    },
    "first_token_ms": {"median": 5.0, "p99": 9.0},
    "met": True,
}


def changed(**changes: Any) -> dict[str, Any]:
    new: dict[str, Any] = json.loads(json.dumps(OLD))
    new["cases"]["one"] |= changes
    return new


def worse(new: dict[str, Any], noise: float = 0.03) -> dict[str, bool | None]:
    return {m.place: m.worse for m in compare.compare(OLD, new, noise)}


def test_speeds_times_and_memory_are_compared_and_nothing_else() -> None:
    assert worse(OLD) == {
        "cases/one/tokens_per_second_a_gpu": None,
        "cases/one/peak_memory_gib": None,
        "first_token_ms/median": None,
        "first_token_ms/p99": None,
    }


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"tokens_per_second_a_gpu": 960}, True),
        ({"tokens_per_second_a_gpu": 1040}, False),
        ({"tokens_per_second_a_gpu": 980}, None),
        # Its own readings differ by more.
        ({"tokens_per_second_a_gpu": 960, "readings": [930, 990]}, None),
    ],
)
def test_a_speed_moves_beyond_noise_and_the_spread_of_its_readings(
    changes: dict[str, Any], expected: bool | None
) -> None:
    assert worse(changed(**changes))["cases/one/tokens_per_second_a_gpu"] is expected


def test_more_memory_is_worse() -> None:
    assert worse(changed(peak_memory_gib=55.0))["cases/one/peak_memory_gib"] is True
    assert worse(changed(peak_memory_gib=45.0))["cases/one/peak_memory_gib"] is False


@pytest.mark.parametrize(("speed", "code"), [(1000, 0), (1100, 0), (900, 1)])
def test_the_exit_code_tells_of_a_regression(
    speed: int,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    files = [tmp_path / "old.json", tmp_path / "new.json"]
    new = changed(tokens_per_second_a_gpu=speed) | {"hardware": {"cores": 4}}
    for file, document in zip(files, (OLD, new), strict=True):
        file.write_text(json.dumps(document))
    monkeypatch.setattr(sys, "argv", ["compare", *map(str, files)])
    assert compare.main() == code
    output = capsys.readouterr().out
    assert "the hardware differs" in output
    assert ("worse   -10.0%  1000 -> 900" in output) == bool(code)
