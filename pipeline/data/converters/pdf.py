"""PDF: the text of its pages with pypdf, as headings and paragraphs.

A PDF has no paragraphs, only letters at places. Lines that are far apart begin a paragraph; larger
or bold lines, and those that the outline names, are headings. Lines that most pages begin or end
with, such as page numbers, are left out.
"""

import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from pipeline.data.converters.structure import MAX_LETTERS, Block, Document, Unusable, structured

if TYPE_CHECKING:
    from pypdf import PdfReader

MAX_PAGES = 10_000
MAX_OPERATIONS = 20_000_000  # of all pages: drawing letters, lines and forms
_LARGER = 1.12  # a heading's letters, compared with the text's
_APART = 1.45  # the distance of two paragraphs, compared with that of two lines
_HEADING_LETTERS = 150
_ALL_BOLD = 0.9  # of the letters
_MARGIN = 0.1  # of a page's height
_MOST = 0.6  # of the pages
# What pypdf raises, beside its own errors, where a file is not what it says.
_DAMAGED = (
    ValueError, OSError, RecursionError, LookupError, TypeError, AttributeError, ArithmeticError,
    AssertionError, NotImplementedError, EOFError,
)  # fmt: skip
_SCAN = "it holds no text, only images: run OCR first, as `ocrmypdf {name} NEW.pdf`"


class _TooMuch(Unusable):
    """A document that would take memory or time without end."""


@dataclass
class _Line:
    """A line of a page.

    number: on its page, from 1. size: of its letters. y: its height.
    in_margin: whether it is in the page's upper or lower margin.
    """

    page: int
    number: int
    text: str
    size: float
    bold: bool
    y: float | None
    in_margin: bool


@dataclass
class _Letters:
    """Pieces of text as pypdf reports them, and how many operations that took."""

    pieces: list[tuple[str, float, bool, float]] = field(default_factory=list)
    letters: int = 0
    operations: int = 0

    def before(self, *_: object) -> None:
        self.operations += 1
        if self.operations > MAX_OPERATIONS:
            raise _TooMuch(f"its pages have more than {MAX_OPERATIONS:,} drawing operations")

    def text(self, text: str, cm: Any, tm: Any, font: Any, size: float | None) -> None:
        if not text:
            return
        self.letters += len(text)
        if self.letters > MAX_LETTERS:
            raise _TooMuch(f"it has more than {MAX_LETTERS:,} letters of text")
        scale = abs(tm[3] or tm[0] or 1) * abs(cm[3] or cm[0] or 1)
        name = str((font or {}).get("/BaseFont", "")).lower()
        is_bold = "bold" in name or "black" in name or "heavy" in name
        self.pieces.append((text, float(size or 0) * scale, is_bold, tm[5] * cm[3] + cm[5]))


def read_pdf(file: Path, raw: bytes) -> Document:
    """The document of a PDF file.

    Raises:
        Unusable: it is none, is encrypted, has no text, or is too long.
    """
    import logging

    from pypdf import PdfReader
    from pypdf.errors import PyPdfError

    logging.getLogger("pypdf").setLevel(logging.ERROR)
    if b"%PDF-" not in raw[:1024]:
        raise Unusable("it is not a PDF file: give it the suffix of what it is")
    try:
        reader = PdfReader(io.BytesIO(raw))
        if reader.is_encrypted and not reader.decrypt(""):
            raise Unusable(
                f"it is encrypted: decrypt it first, as `qpdf --decrypt --password=… {file.name} "
                "NEW.pdf`"
            )
        count = len(reader.pages)
        if count > MAX_PAGES:
            raise _TooMuch(f"it has {count:,} pages, more than {MAX_PAGES:,}")
        pages = _pages(reader)
        outline = _outline(reader)
        told = str((reader.metadata and reader.metadata.title) or "").strip()
    except Unusable:
        raise
    except (PyPdfError, *_DAMAGED) as error:
        raise Unusable(
            f"it is truncated or damaged ({' '.join(str(error).split())[:80] or 'no reason'}): "
            f"copy it again, or repair it: `qpdf {file.name} NEW.pdf`"
        ) from error
    if not any(pages):
        raise Unusable(_SCAN.format(name=file.name) if count else "it has no pages")
    textless = tuple(number for number, lines in enumerate(pages, 1) if not lines)
    sections = structured(_blocks(_without_edges(pages), outline))
    first = [s.headings[-1] for s in sections if s.level == 1]
    return Document(told or (first[0] if first else file.stem), "pdf", sections, count, textless)


def _pages(reader: "PdfReader") -> list[list[_Line]]:
    letters, pages = _Letters(), []
    for number, page in enumerate(reader.pages, 1):
        letters.pieces = []
        page.extract_text(visitor_operand_before=letters.before, visitor_text=letters.text)
        if letters.operations > MAX_OPERATIONS:  # pypdf goes on where a form inside fails
            letters.before()
        low, high = float(page.mediabox.bottom), float(page.mediabox.top)
        margin = _MARGIN * (high - low)
        pages.append(list(_lines(letters.pieces, number, (low + margin, high - margin))))
    return pages


def _lines(
    pieces: Sequence[tuple[str, float, bool, float]], page: int, inside: tuple[float, float]
) -> Iterator[_Line]:
    """The lines of a page; each has the size of most of its letters.

    inside: the heights that the text is between.
    """
    number = 0
    parts: list[tuple[str, float, bool, float]] = []
    for text, size, bold, y in [*pieces, ("\n", 0.0, False, 0.0)]:
        first, *more = text.split("\n")
        parts.append((first, size, bold, y))
        for rest in more:
            said = " ".join("".join(part[0] for part in parts).split())
            if said:
                number += 1
                sizes, bolds = Counter[float](), 0
                for part, letters, is_bold, _ in parts:
                    count = len(part.strip())
                    sizes[round(letters, 1)] += count
                    bolds += count * is_bold
                height = next((part[3] for part in parts if part[0].strip()), None)
                is_bold = bolds > 0.8 * sizes.total()
                outside = height is not None and not inside[0] < height < inside[1]
                size = sizes.most_common(1)[0][0]
                yield _Line(page, number, said, size, is_bold, height, outside)
            parts = [(rest, size, bold, y)]


def _without_edges(pages: Sequence[list[_Line]]) -> list[_Line]:
    """The lines of all pages, without those that most pages begin or end with.

    These are in the margins, and no larger than the text.
    """
    kept = [list(lines) for lines in pages if lines]
    every = [line for lines in kept for line in lines]
    if len(kept) < 3:
        return every
    size = _usual(every)[0]
    for edge in (0, -1):
        for _ in range(2):
            found = Counter(_shape(lines[edge].text) for lines in kept if lines)
            for lines in kept:
                if not lines or found[_shape(lines[edge].text)] <= _MOST * len(kept):
                    continue
                if lines[edge].in_margin and lines[edge].size <= size:
                    del lines[edge]
    return [line for lines in kept for line in lines]


def _shape(text: str) -> str:
    """A line whose numbers do not count."""
    return re.sub(r"\d+", "0", text)


def _outline(reader: "PdfReader") -> dict[str, int]:
    """The levels of headings, by their text, as the outline has them."""
    levels: dict[str, int] = {}

    def gather(items: Sequence[Any], level: int) -> None:
        for item in items:
            if isinstance(item, list):
                gather(item, level + 1)
            elif len(levels) < MAX_PAGES and (title := " ".join(str(item.title).split())):
                levels.setdefault(title.casefold(), min(level, 6))

    gather(reader.outline, 1)
    return levels


def _blocks(lines: Sequence[_Line], outline: dict[str, int]) -> Iterator[Block]:
    levels = _levels(lines, outline)
    distance = _distance(lines)
    paragraph: list[_Line] = []
    heading: list[_Line] = []
    for i, line in enumerate(lines):
        level = levels[i]
        before = lines[i - 1] if i else None
        if heading and (not level or level != levels[i - 1] or _are_apart(before, line, distance)):
            yield _joined(heading, levels[i - 1])
            heading = []
        if level:
            if paragraph:
                yield _joined(paragraph, 0)
                paragraph = []
            heading.append(line)
            continue
        if paragraph and _begins(paragraph[-1], line, distance):
            yield _joined(paragraph, 0)
            paragraph = []
        paragraph.append(line)
    if heading:
        yield _joined(heading, levels[-1])
    if paragraph:
        yield _joined(paragraph, 0)


def _levels(lines: Sequence[_Line], outline: dict[str, int]) -> list[int]:
    """For each line, the level of the heading that it is; 0: it is text."""
    size, bold = _usual(lines)

    def stands_out(line: _Line) -> bool:
        if len(line.text) > _HEADING_LETTERS or not re.search(r"[^\W\d_]", line.text):
            return False
        return line.size > _LARGER * size or (
            line.bold and not bold and line.size >= size and not line.text.endswith((".", ":", ","))
        )

    ranks = sorted({(line.size, line.bold) for line in lines if stands_out(line)}, reverse=True)
    by_looks = {look: min(rank, 6) for rank, look in enumerate(ranks, 1)}
    found = []
    for line in lines:
        named = outline.get(line.text.casefold())
        found.append(named or (by_looks[line.size, line.bold] if stands_out(line) else 0))
    return found


def _usual(lines: Sequence[_Line]) -> tuple[float, bool]:
    """The size of most letters, and whether about all of that size are bold."""
    sizes, bold = Counter[float](), Counter[float]()
    for line in lines:
        sizes[line.size] += len(line.text)
        bold[line.size] += len(line.text) * line.bold
    size = sizes.most_common(1)[0][0]
    # Bold questions may have more letters than the answers to them.
    return size, bold[size] > _ALL_BOLD * sizes[size]


def _distance(lines: Sequence[_Line]) -> float:
    """The usual distance of two lines of a paragraph, in letters' sizes."""
    found = [
        (a.y - b.y) / a.size
        for a, b in pairwise(lines)
        if a.page == b.page and a.y is not None and b.y is not None and a.size and a.y > b.y
    ]
    return median(found) if found else 1.2


def _are_apart(before: _Line | None, line: _Line, distance: float) -> bool:
    if before is None or before.page != line.page or before.y is None or line.y is None:
        return True
    step = before.y - line.y
    return step < 0 or step > _APART * min(distance, 2) * max(before.size, 1)


def _begins(before: _Line, line: _Line, distance: float) -> bool:
    """Whether a line begins a paragraph."""
    if re.match(r"([-•▪◦‣*]|\d{1,3}[.)]|[QA]\d*[:.])\s", line.text):
        return True
    if before.page != line.page:
        return before.text.endswith((".", "!", "?", ":"))
    return _are_apart(before, line, distance)


def _joined(lines: Sequence[_Line], level: int) -> Block:
    """The lines as one text. A word that was divided at the end of a line becomes one again."""
    text = lines[0].text
    for line in lines[1:]:
        if re.search(r"[^\W\d_]-$", text) and line.text[:1].islower():
            text = text[:-1] + line.text
        else:
            text += " " + line.text
    return Block(re.sub(r"^[•▪◦‣]\s*", "- ", text), lines[0].number, lines[0].page, level)
