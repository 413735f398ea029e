"""HTML, PDF and DOCX: questions and answers as in Markdown, from the document's text.

Headings below the first level are questions, or what the text marks as such (questions.py). Where
all headings are of one level, those with text below them are questions. The number of a row is its
line; in a PDF, its page; in a DOCX, its paragraph.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from pipeline.data.documents import Document, read_document
from pipeline.data.readers.markdown import read_sections
from pipeline.data.readers.record import Advance, Piece, Reader, Row, Section
from pipeline.data.rows import Line

# Stands before a # that is no heading while the text is read as Markdown.
_MARK = "\u2063"


def _read(file: Path, name: str, piece: Piece, advance: Advance) -> Iterator[Row]:
    document = read_document(file)
    for row in read_sections(name, iter(list(_lines(document))), is_markdown=False):
        if isinstance(row, Section):
            row = replace(row, answer=row.answer.replace(_MARK, ""))
        yield row
    advance(file.stat().st_size)


def _lines(document: Document) -> Iterator[Line]:
    """The document as Markdown. The number of a line is its place in the document."""
    levels = {section.level for section in document.sections if section.level}
    flat = levels == {1} and len(document.sections) > 1
    yield Line(1, document.title.replace("#", ""), None)
    yield Line(1, "", None)
    for section in document.sections:
        if section.level:
            level = 2 if flat and section.paragraphs else section.level
            number = section.page or section.line
            yield Line(number, f"{'#' * level} {section.headings[-1]}", None)
        for paragraph in section.paragraphs:
            for text in paragraph.text.split("\n"):
                marked = re.sub(r"^(\s*)(?=#)", rf"\1{_MARK}", text)
                yield Line(paragraph.page or paragraph.line, marked, None)
            yield Line(paragraph.page or paragraph.line, "", None)


HTML = Reader("html", "HTML", (".html", ".htm", ".xhtml"), _read, compressed=False)
PDF = Reader("pdf", "PDF", (".pdf",), _read, compressed=False)
DOCX = Reader("docx", "DOCX", (".docx",), _read, compressed=False)
