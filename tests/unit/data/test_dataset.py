"""The dataset's files: what is written is read again, the same rows are the same bytes."""

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.errors import DataError
from pipeline.data import dataset
from pipeline.data.dataset import Row, read_split, write_split

text = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]))
tokens = st.lists(st.tuples(st.integers(0, 2**31 - 1), st.integers(0, 1)))


@st.composite
def rows(draw: st.DrawFn, *, is_test: bool) -> Row:
    pairs = draw(tokens)
    return Row(
        messages=[{"role": "user", "content": draw(text)}],
        input_ids=[token for token, _ in pairs],
        loss_mask=[trained for _, trained in pairs],
        source=draw(text),
        prompt_ids=[token for token, _ in draw(tokens)] if is_test else None,
        answer=draw(text) if is_test else None,
    )


@settings(deadline=None, max_examples=40)
@given(st.lists(rows(is_test=False)), st.lists(rows(is_test=True)))
def test_rows_come_back(
    tmp_path_factory: pytest.TempPathFactory, train: list[Row], test: list[Row]
) -> None:
    folder = tmp_path_factory.mktemp("dataset")
    write_split(folder, "train", train)
    write_split(folder, "test", test)
    assert read_split(folder, "train") == train
    assert read_split(folder, "test") == test


def row(i: int) -> Row:
    return Row([{"role": "user", "content": f"Frage {i} ä"}], [i, 7], [0, 1], f"a.jsonl:{i}")


def test_pairs_and_labels_come_back(tmp_path: Path) -> None:
    one = row(1)
    pairs = [replace(one, rejected=one.messages, rejected_ids=[i, 8, 9], rejected_mask=[0, 1, 1])
             for i in range(3)]  # fmt: skip
    labels = [replace(one, label=i % 2) for i in range(3)]
    for kind, found in (("pairs", pairs), ("labels", labels)):
        write_split(tmp_path, "train", found, kind)
        assert read_split(tmp_path, "train") == found
        assert {r.kind for r in found} == {kind}
        write_split(tmp_path, "test", [], kind)
        assert read_split(tmp_path, "test") == []
    write_split(tmp_path, "train", [replace(pairs[0], rejected_mask=[1])], "pairs")
    with pytest.raises(DataError, match="3 ids and a mask of 1"):
        read_split(tmp_path, "train")


def test_same_rows_are_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    one = write_split(tmp_path, "train", [row(i) for i in range(50)])
    other = write_split(tmp_path / "other", "train", (row(i) for i in range(50)))
    assert one.read_bytes() == other.read_bytes()


def test_more_rows_than_a_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "ROW_GROUP", 3)
    written = [row(i) for i in range(8)]
    file = write_split(tmp_path, "train", written)
    assert pq.ParquetFile(file).metadata.num_row_groups == 3
    assert read_split(tmp_path, "train") == written


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train\.parquet is missing: run .*stage=prepare"):
        read_split(tmp_path, "train")


def test_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "train.parquet").write_bytes(b"PAR1 not at all")
    with pytest.raises(DataError, match="is not a Parquet file"):
        read_split(tmp_path, "train")


def test_file_cut_short(tmp_path: Path) -> None:
    file = write_split(tmp_path, "train", [row(1)])
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(DataError, match="is not a Parquet file"):
        read_split(tmp_path, "train")


def test_other_columns(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "train.parquet")
    with pytest.raises(DataError, match="has the columns text, not those of a dataset"):
        read_split(tmp_path, "train")


def test_mask_of_another_length(tmp_path: Path) -> None:
    write_split(tmp_path, "train", [row(1), Row([], [1, 2], [1], "a.jsonl:2")])
    with pytest.raises(DataError, match="row 1 has 2 ids and a mask of 1"):
        read_split(tmp_path, "train")


def test_messages_that_are_no_json(tmp_path: Path) -> None:
    file = write_split(tmp_path, "train", [row(1)])
    table = pq.read_table(file)
    broken = table.set_column(0, table.schema.field(0), pa.array(["{"]))
    pq.write_table(broken, file)
    with pytest.raises(DataError, match="messages that are not JSON"):
        read_split(tmp_path, "train")
