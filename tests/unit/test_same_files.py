"""The comparison of two clones' artifacts."""

from pathlib import Path

from tests.made_artifacts import make_artifact
from tests.same_files import differing


def test_what_is_not_the_same_is_named(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for place, text in ((one, "x"), (other, "y")):
        make_artifact(place, "merge", "hf_checkpoint", files={"config.json": text, "a": "same"})
    make_artifact(one, "export", "exported", files={"only": "here"})
    assert differing(one, other) == (["export/only", "merge/config.json"], 3, 0)
    assert differing(one, one) == ([], 3, 0)
