"""What every document is after its conversion: sections of paragraphs, each with its place.

A converter yields blocks in the order of the document; `structured` makes the sections.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

MIB = 2**20
MAX_BYTES = 256 * MIB  # of a document on the disk, and of what it unpacks to
MAX_LETTERS = 32 * MIB  # of its text
TABLE_EDGE = "|"


class Unusable(ValueError):
    """Why a document cannot be used, and what to do: completes "FILE cannot be used: …"."""


@dataclass(frozen=True)
class Paragraph:
    """A paragraph, a list, a table (as Markdown), or a block of code.

    line: of the file; in a PDF, of the page; in a DOCX, the number of the paragraph. From 1.
    page: in a PDF, counted from 1; elsewhere None.
    """

    text: str
    line: int
    page: int | None = None


@dataclass(frozen=True)
class Section:
    """A heading and what is below it, up to the next heading.

    headings: those that it is under and its own, from the highest level; empty before the first
        heading. level: of its own heading, 1 to 6; 0 without one. line, page: of the heading, or
        of the first paragraph, as in Paragraph.
    """

    headings: tuple[str, ...]
    level: int
    paragraphs: tuple[Paragraph, ...]
    line: int
    page: int | None = None

    @cached_property
    def text(self) -> str:
        """The paragraphs, with a blank line between two."""
        return "\n\n".join(paragraph.text for paragraph in self.paragraphs)


@dataclass(frozen=True)
class Document:
    """A document as text.

    title: as the document states it, or its first heading of level 1; otherwise its file's name.
    format: markdown, text, html, pdf or docx. pages: of a PDF; elsewhere None.
    textless_pages: those of a PDF without text, such as scanned ones.
    """

    title: str
    format: str
    sections: tuple[Section, ...]
    pages: int | None = None
    textless_pages: tuple[int, ...] = ()

    @property
    def text(self) -> str:
        """The whole text, headings included."""
        parts = []
        for section in self.sections:
            parts += [section.headings[-1]] if section.level else []
            parts += [section.text] if section.paragraphs else []
        return "\n\n".join(parts)


@dataclass(frozen=True)
class Block:
    """A part of a document. level: of a heading, 1 to 6; 0: it is a paragraph."""

    text: str
    line: int
    page: int | None = None
    level: int = 0


def structured(blocks: Iterable[Block]) -> tuple[Section, ...]:
    """The sections of a document. A heading without text below it is a section, too."""
    sections: list[Section] = []
    above: list[tuple[int, str]] = []
    start: Block | None = None
    paragraphs: list[Paragraph] = []

    def close() -> None:
        first = start or (paragraphs[0] if paragraphs else None)
        if first is not None:
            headings = tuple(text for _, text in above)
            level = start.level if start else 0
            sections.append(Section(headings, level, tuple(paragraphs), first.line, first.page))

    for block in blocks:
        if not block.text.strip():
            continue
        if not block.level:
            paragraphs.append(Paragraph(block.text, block.line, block.page))
            continue
        close()
        above = [*((level, text) for level, text in above if level < block.level)]
        above.append((block.level, block.text))
        start, paragraphs = block, []
    close()
    return tuple(sections)


def bounded(blocks: Iterable[Block]) -> Iterator[Block]:
    """The blocks.

    Raises:
        Unusable: they are more than MAX_LETTERS.
    """
    letters = 0
    for block in blocks:
        letters += len(block.text)
        if letters > MAX_LETTERS:
            raise Unusable(f"it has more than {MAX_LETTERS // MIB} million letters of text")
        yield block


def table(rows: Sequence[Sequence[str]]) -> str:
    """A table as Markdown has it; the first row is its head. Cells are on one line each."""
    rows = [row for row in rows if any(cell.strip() for cell in row)]
    if not rows:
        return ""
    width = max(len(row) for row in rows)
    lines = [_line([*row, *[""] * (width - len(row))]) for row in rows]
    lines.insert(1, _line(["---"] * width))
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    plain = (" ".join(cell.split()).replace(TABLE_EDGE, f"\\{TABLE_EDGE}") for cell in cells)
    return f"| {' | '.join(plain)} |"
