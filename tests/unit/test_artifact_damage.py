"""Each kind of damage to an artifact is refused in a line; tests/artifact_damage.py does more."""

from pathlib import Path

import pytest

from tests.artifact_damage import KINDS, Chain, Counts, Damage, judged, lengthen, try_opening
from tests.made_artifacts import make_chain


def test_no_damage_is_silent_and_none_ends_in_a_traceback(tmp_path: Path) -> None:
    made = make_chain(tmp_path / "made")
    chain = Chain(tmp_path / "made", tmp_path / "copy", [*made])
    counts = Counts()
    try_opening(chain, counts, "benchmark", flips=3)
    assert counts.wrong == []
    assert counts.said["refused"] > 150
    assert set(KINDS) - {"swap two files"} <= counts.opened.keys()


def test_what_was_damaged_is_restored_whole(tmp_path: Path) -> None:
    make_chain(tmp_path / "made")
    chain = Chain(tmp_path / "made", tmp_path / "copy", ["merge"])
    file = next(p for p in (tmp_path / "copy/merge").iterdir() if p.name != "manifest.json")
    for damage in (
        lambda a: lengthen(a / file.name, None),
        lambda a: (a / "x/y").mkdir(parents=True),
    ):
        with chain.damaged("merge", Damage("any", "", damage)):
            pass
        assert {p.name: p.read_bytes() for p in (tmp_path / "copy/merge").iterdir()} == {
            p.name: p.read_bytes() for p in (tmp_path / "made/merge").iterdir()
        }


def test_a_kind_that_is_not_refused_is_counted_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    counts = Counts()
    counts.add(Damage("cut", "a file", lambda _: None), "stage=merge", "silent")
    assert "1 command lines: 0 refused in a line, 0 tracebacks, 1 silent" in str(counts)
    assert "silent: cut (a file), stage=merge" in capsys.readouterr().out


def test_what_is_no_refusal_is_counted_as_what_it_is() -> None:
    assert judged(4, "pipeline: ArtifactError: altered\n") == "refused"
    assert judged(4, '{"message": "loading"}\npipeline: ArtifactError: altered\n') == "refused"
    assert judged(0, "up to date") == "silent"
    assert judged(1, "Traceback (most recent call last):\n…") == "traceback"
    assert judged(4, "one line\nand another") == "not one line"
    assert judged(3, "pipeline: DataError: x") == "exit code 3"
    assert judged(-1, "") == "not refused in time"
