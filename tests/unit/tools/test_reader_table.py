"""docs/readers.md says what the readers do, and each reader is tried with bad files."""

import pytest

from pipeline.data.readers.table import READERS
from tools.reader_table import PAGE, cases, page, row_cases, said, said_of_row


def test_the_page_is_what_the_readers_say() -> None:
    pytest.importorskip("pypdf", reason="make setup EXTRA=documents")
    pytest.importorskip("docx", reason="make setup EXTRA=documents")
    assert PAGE.read_text() == page(), "run `make docs`"


@pytest.mark.parametrize("name", READERS)
def test_each_reader_accepts_and_refuses(name: str) -> None:
    if name in ("pdf", "docx"):
        pytest.importorskip("pypdf", reason="make setup EXTRA=documents")
        pytest.importorskip("docx", reason="make setup EXTRA=documents")
    found = [said(case) for case in cases() if case.reader == name]
    assert any(accepted and not refused for accepted, refused in found)
    assert any(refused for _, refused in found)


@pytest.mark.parametrize("name", dict.fromkeys(case.format for case in row_cases()))
def test_each_format_of_rows_accepts_and_refuses(name: str) -> None:
    found = [said_of_row(case) for case in row_cases() if case.format == name]
    assert any(accepted for accepted, _ in found)
    assert any(refused for _, refused in found)
