"""Tags and languages of rows: what counts as one, and that a dataset keeps them."""

from pathlib import Path

import pytest

from pipeline.data.dataset import Row, read_split, write_split
from pipeline.data.tags import NONE, Tags, tags_of


@pytest.mark.parametrize(
    ("row", "tags"),
    [
        ({"prompt": "a"}, NONE),
        ("text", NONE),
        ({"tags": ["a", "b", "a", "", None, 7]}, Tags(("a", "b", "7"))),
        ({"category": " cards\n and loans ", "lang": "de"}, Tags(("cards and loans",), "de")),
        ({"tags": {"a": 1}, "intent": True, "language": ["en", "de"]}, Tags((), "en")),
        ({"tags": [str(i) for i in range(99)]}, Tags(tuple(map(str, range(16))))),
    ],
)
def test_tags_of_a_row(row: object, tags: Tags) -> None:
    assert tags_of(row) == tags


def test_a_dataset_keeps_tags_and_languages(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    plain = Row(messages, [1, 2], [0, 1], "f:1", [1], "b")
    tagged = Row(messages, [1, 2], [0, 1], "f:2", [1], "b", tags=["x", "y"], language="de")
    write_split(tmp_path, "test", [plain, tagged])
    assert read_split(tmp_path, "test") == [plain, tagged]
