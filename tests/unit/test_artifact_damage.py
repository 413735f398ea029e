"""Each kind of damage to an artifact is refused in a line; tests/artifact_damage.py does more."""

from pathlib import Path

from tests.artifact_damage import FILE_DAMAGES, FOLDER_DAMAGES, Chain, Counts, judged, try_all
from tests.made_artifacts import make_chain


def test_no_damage_is_silent_and_none_ends_in_a_traceback(tmp_path: Path) -> None:
    made = make_chain(tmp_path / "made")
    chain = Chain(tmp_path / "made", tmp_path / "copy", [*made])
    counts = Counts()
    try_all(chain, counts, {}, flips=3, settings=(), damaged=["benchmark"])
    assert counts.wrong == []
    assert counts.said["refused"] > 150
    kinds = {*FILE_DAMAGES, *FOLDER_DAMAGES, "swap artifacts", "swap manifests", "manifest edited"}
    assert kinds <= counts.done.keys()


def test_what_is_no_refusal_is_counted_as_what_it_is() -> None:
    assert judged(4, "pipeline: ArtifactError: altered\n") == "refused"
    assert judged(0, "up to date") == "silent"
    assert judged(1, "Traceback (most recent call last):\n…") == "traceback"
    assert judged(4, "one line\nand another") == "not one line"
    assert judged(3, "pipeline: DataError: x") == "exit code 3"
    assert judged(-1, "") == "not refused in time"
