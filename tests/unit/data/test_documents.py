"""Documents become sections with their places; what cannot be read is refused in one line."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.core.errors import DataError, MissingRuntime
from pipeline.core.extras import Extra
from pipeline.data import documents
from pipeline.data.converters import pdf as pdf_converter
from pipeline.data.converters import structure
from pipeline.data.documents import Document, read_document
from tests.unit.data.pdf_files import Line, pdf

PAGE = """<!DOCTYPE html><html><head><title>Harbor
 Bank</title><script>alert("no")</script></head><body>
<nav><a href="/">Home</a></nav>
<main><h1>Fees</h1>
<p>All fees
are in <b>dollars</b>.<br>Nothing else.
<p>Second
<h2>How much is a <em>wire</em>?</h2>
A wire costs &euro;5.
<ul><li>one<li>two <ul><li>inner</ul></ul>
<table><tr><th>Card<th>Fee<tr><td>Gold<td>9|0</table>
<dl><dt>When?<dd>At nine.</dl>
<pre>
x = 1
  y
</pre>
<div hidden>hidden</div><p style="display: none">hidden</p>
</main><footer>All rights</footer></body></html>"""


def sections(document: Document) -> list[tuple[tuple[str, ...], str, int, int | None]]:
    return [(s.headings, s.text, s.line, s.page) for s in document.sections]


def written(folder: Path, name: str, content: str | bytes) -> Path:
    file = folder / name
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


def refusal(file: Path) -> str:
    with pytest.raises(DataError) as refused:
        read_document(file)
    message = str(refused.value)
    assert message.startswith(str(file))
    assert "\n" not in message
    return message.removeprefix(str(file))


def test_html(tmp_path: Path) -> None:
    document = read_document(written(tmp_path, "page.html", PAGE))
    assert document.title == "Harbor Bank"
    assert sections(document) == [
        (("Fees",), "All fees are in dollars.\nNothing else.\n\nSecond", 4, None),
        (
            ("Fees", "How much is a wire?"),
            "A wire costs €5.\n\n- one\n- two\n  - inner\n\n"
            "| Card | Fee |\n| --- | --- |\n| Gold | 9\\|0 |",
            8,
            None,
        ),
        (("Fees", "How much is a wire?", "When?"), "At nine.\n\n```\nx = 1\n  y\n```", 12, None),
    ]
    assert [p.line for p in document.sections[1].paragraphs] == [9, 10, 11]


def test_html_is_read_in_the_encoding_that_it_declares(tmp_path: Path) -> None:
    page = '<meta charset="ISO-8859-1"><p>café – “5 €”</p>'.encode("cp1252")
    assert read_document(written(tmp_path, "a.htm", page)).text == "café – “5 €”"
    page = "<p>café</p>".encode("utf-16")
    assert read_document(written(tmp_path, "b.htm", page)).text == "café"
    assert refusal(written(tmp_path, "c.html", b"<p>a</p>\n<p>caf\xe9</p>")) == (
        ":2: the bytes are not utf-8 (invalid continuation byte): declare the encoding with "
        '<meta charset="…">, or convert it: `iconv -f LATIN1 -t UTF-8 c.html > NEW`'
    )
    page = b'<meta charset="klingon"><p>a</p>'
    assert "unknown encoding klingon" in refusal(written(tmp_path, "d.html", page))


def test_tables_that_are_layout_are_read_as_text(tmp_path: Path) -> None:
    page = "<table><tr><td><h2>A</h2>one<td><table><tr><td>x<td>y</table></table>"
    document = read_document(written(tmp_path, "a.html", page))
    assert sections(document) == [(("A",), "one\n\n| x | y |\n| --- | --- |", 1, None)]


def test_deep_html_is_refused_and_not_cut(tmp_path: Path) -> None:
    assert "256 deep" in refusal(written(tmp_path, "a.html", "<div>" * 3000 + "text"))


def test_markdown_and_text(tmp_path: Path) -> None:
    text = "---\na: b\n---\n# Fees\nAll\nfees.\n\n- one\n- two\n\n## Wire ##\n```\n## no\n```\n"
    document = read_document(written(tmp_path, "a.md", text))
    assert document.title == "Fees"
    assert sections(document) == [
        (("Fees",), "All fees.\n\n- one\n- two", 4, None),
        (("Fees", "Wire"), "```\n## no\n```", 11, None),
    ]
    document = read_document(written(tmp_path, "b.txt", "Harbor Bank\n\nWe open\nat nine.\n"))
    assert (document.title, document.text) == ("Harbor Bank", "Harbor Bank\n\nWe open at nine.")
    assert ":2: bad UTF-8" in refusal(written(tmp_path, "c.txt", b"a\ncaf\xe9\n"))


def handbook(chapters: int) -> list[list[Line]]:
    return [
        [
            (780, 8, False, "Harbor Bank handbook"),
            (740, 18, True, f"Chapter {number}"),
            (710, 11, True, "How much is a wire?"),
            (690, 11, False, "A wire costs five dol-"),
            (676, 11, False, "lars and arrives (mostly) on the same"),
            (662, 11, False, "day."),
            (630, 11, False, "Another paragraph."),
            (20, 8, False, f"Page {number}"),
        ]
        for number in range(1, chapters + 1)
    ]


def test_pdf(tmp_path: Path) -> None:
    pytest.importorskip("pypdf", reason="make setup EXTRA=documents")
    file = written(tmp_path, "a.pdf", pdf([*handbook(3), []], title="The Handbook"))
    document = read_document(file)
    assert (document.title, document.pages, document.textless_pages) == ("The Handbook", 4, (4,))
    told = "A wire costs five dollars and arrives (mostly) on the same day.\n\nAnother paragraph."
    assert sections(document) == [
        section
        for page in (1, 2, 3)
        for section in (
            ((f"Chapter {page}",), "", 2, page),
            ((f"Chapter {page}", "How much is a wire?"), told, 3, page),
        )
    ]


def test_pdfs_that_cannot_be_read(tmp_path: Path) -> None:
    pypdf = pytest.importorskip("pypdf", reason="make setup EXTRA=documents")
    whole = pdf(handbook(1))
    assert "ocrmypdf a.pdf" in refusal(written(tmp_path, "a.pdf", pdf([[], []])))
    assert "truncated or damaged" in refusal(written(tmp_path, "b.pdf", whole[:700]))
    assert "is not a PDF file" in refusal(written(tmp_path, "c.pdf", "hello"))
    assert "it is empty" in refusal(written(tmp_path, "d.pdf", ""))
    writer = pypdf.PdfWriter(io.BytesIO(whole))
    writer.encrypt("secret", algorithm="AES-256")
    packed = io.BytesIO()
    writer.write(packed)
    message = refusal(written(tmp_path, "e.pdf", packed.getvalue()))
    assert "it is encrypted: decrypt it first, as `qpdf --decrypt" in message
    # A PDF that anybody can open, and that only restricts its use, is read.
    writer = pypdf.PdfWriter(io.BytesIO(whole))
    writer.encrypt("", "owner", algorithm="AES-256")
    packed = io.BytesIO()
    writer.write(packed)
    assert "Chapter 1" in read_document(written(tmp_path, "f.pdf", packed.getvalue())).text


def test_pdf_bombs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pypdf", reason="make setup EXTRA=documents")
    file = written(tmp_path, "a.pdf", pdf(handbook(3)))
    monkeypatch.setattr(pdf_converter, "MAX_OPERATIONS", 20)
    assert "more than 20 drawing operations" in refusal(file)
    monkeypatch.setattr(pdf_converter, "MAX_PAGES", 2)
    assert "it has 3 pages" in refusal(file)


def docx(folder: Path, change: Callable[[bytes], bytes] = lambda content: content) -> Path:
    library = pytest.importorskip("docx", reason="make setup EXTRA=documents")
    made = library.Document()
    made.add_heading("Handbook", 0)
    made.add_heading("Fees", 2)
    made.add_paragraph("All fees in dollars.")
    made.add_paragraph("one", style="List Bullet")
    made.add_paragraph("two", style="List Bullet")
    table = made.add_table(2, 2)
    for i, text in enumerate(("Card", "Fee", "Gold", "90")):
        table.cell(*divmod(i, 2)).text = text
    paragraph = made.add_paragraph("It was ")
    content = paragraph._p
    for tag, inner in (("del", "delText"), ("ins", "t")):
        changed = library.oxml.parse_xml(
            f'<w:{tag} xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main">'
            f"<w:r><w:{inner}>{tag}</w:{inner}></w:r></w:{tag}>"
        )
        content.append(changed)
    packed = io.BytesIO()
    made.save(packed)
    return written(folder, "a.docx", change(packed.getvalue()))


def test_docx(tmp_path: Path) -> None:
    document = read_document(docx(tmp_path))
    assert document.title == "Handbook"
    assert sections(document) == [
        (("Handbook",), "", 1, None),
        (
            ("Handbook", "Fees"),
            "All fees in dollars.\n\n- one\n- two\n\n"
            "| Card | Fee |\n| --- | --- |\n| Gold | 90 |\n\nIt was ins",
            2,
            None,
        ),
    ]
    assert [p.line for p in document.sections[1].paragraphs] == [3, 4, 6, 8]


def test_docx_files_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "truncated, or not a DOCX file" in refusal(docx(tmp_path, lambda raw: raw[:2000]))
    assert "it is encrypted" in refusal(docx(tmp_path, lambda _: b"\xd0\xcf\x11\xe0 OLE"))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as parts:
        parts.writestr("a.txt", "no document")
    assert "not a DOCX file" in refusal(docx(tmp_path, lambda _: packed.getvalue()))
    monkeypatch.setattr("pipeline.data.converters.docx.MAX_BYTES", structure.MIB // 2)
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as parts:
        parts.writestr("word/document.xml", b" " * structure.MIB)
    assert "it unpacks to 1 MiB" in refusal(docx(tmp_path, lambda _: packed.getvalue()))


def test_what_is_no_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no document of a known format" in refusal(tmp_path / "a.xlsx")
    assert "cannot be read (No such file" in refusal(tmp_path / "a.html")
    monkeypatch.setattr(documents, "MAX_BYTES", 3)
    assert "split it into parts" in refusal(written(tmp_path, "b.html", "<p>long</p>"))
    missing = Extra("documents", "", ("no-such-package",), 1)
    monkeypatch.setitem(documents.require.__globals__["EXTRAS"], "documents", missing)
    with pytest.raises(MissingRuntime, match=r"a.pdf needs no-such-package.*EXTRA=documents"):
        read_document(tmp_path / "a.pdf")
