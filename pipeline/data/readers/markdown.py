"""Reads questions and answers from Markdown and plain text: each `## heading` and what is below it.

Where a text marks its questions in another way (questions.py), these are its questions, and any
heading is a chapter's.

markdown-it-py finds the blocks, so that a `##` in a code block or a list is no question. In an
answer, the lines of a paragraph are joined; code, lists, tables and all else stay as they are.
"""

import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.data.readers.lines import read_lines
from pipeline.data.readers.questions import find_questions
from pipeline.data.readers.record import Advance, Piece, Reader, Row, Section
from pipeline.data.rows import Line, Rejected

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token

OUTSIDE = "text outside a section"
_FRONT_MATTER = ("---", "...")
_UNSPACED = re.compile(r" {0,3}#{2,6}[^#\s]")


def read_sections(
    file: str, lines: Iterator[Line], *, is_markdown: bool
) -> Iterator[Section | Rejected]:
    """A row for each section, and for text that belongs to none.

    Args:
        file: how the rows name the file.
        lines: all of its lines.
        is_markdown: whether underlined text is a heading, as in Markdown, and the file may start
            with front matter. In other texts a rule below a paragraph is only a rule.
    """
    document = _Document(list(lines), is_markdown)
    starts = document.starts()
    last = len(document.lines)
    for start, end in pairwise([*starts, _Start(last, last, 0, None)]):
        if row := document.row(file, start, end):
            yield row


@dataclass(frozen=True)
class _Start:
    """Where a section begins. line, body: indices of its first line and of the first below it.

    level: of the heading, 1 to 6; 0 for the start of the file. heading: its text, or None.
    """

    line: int
    body: int
    level: int
    heading: str | None


class _Document:
    def __init__(self, lines: list[Line], is_markdown: bool) -> None:
        self.lines = lines
        # One line each for the parser too, which also ends lines at a lone carriage return.
        texts = [line.text.rstrip("\r\n").replace("\r", " ") for line in lines]
        self._begin = _front_matter(texts) if is_markdown else 0
        self._faq = find_questions([*[""] * self._begin, *texts[self._begin :]])
        if self._faq:
            texts = [*texts[: self._begin], *self._faq.lines[self._begin :]]
        self._texts = texts
        self._blocks = blocks(texts, is_markdown=is_markdown)

    def starts(self) -> list[_Start]:
        starts = [_Start(self._begin, self._begin, 0, None)]
        for token in self._blocks:
            if token.type == "heading_open":
                first, end = token.map or [0, 0]
                level = 1 if self._faq else int(token.tag[1])
                starts.append(_Start(first, end, level, heading(token, self._texts)))
        for question in self._faq.questions if self._faq else ():
            starts.append(_Start(question.line, question.body, 2, question.text))
        return sorted(starts, key=lambda start: (start.line, start.level))

    def row(self, file: str, start: _Start, following: _Start) -> Section | Rejected | None:
        """The row of a section; None if there is nothing in it but a title."""
        end = following.line
        begin = start.line if start.level != 1 else start.body
        fault = next((line for line in self.lines[begin:end] if line.fault), None)
        if fault:
            return fault.rejected(file, str(fault.fault), fault.detail)
        for index in self._unspaced(start.body, end):
            return self.lines[index].rejected(
                file, "bad heading", "write a space behind the #, or it is text as any other"
            )
        if start.level < 2:
            return self._outside(file, start, end)
        is_empty = not any(text.strip() for text in self._texts[start.body : end])
        if is_empty and following.level > start.level:
            return None  # the heading of a chapter
        answer = self._text(start.body, end)
        return Section(self.lines[start.line].number, start.heading or "", answer)

    def _outside(self, file: str, start: _Start, end: int) -> Rejected | None:
        """Text in no section. At the start of the file, the first line is its title."""
        texts = (i for i in range(start.body, end) if self._texts[i].strip())
        if start.level == 0:
            next(texts, None)
        found = next(texts, None)
        if found is None:
            return None
        return self.lines[found].rejected(
            file, OUTSIDE, "there is no question above it, as `## When do you open?` or `Q: …`"
        )

    def _unspaced(self, begin: int, end: int) -> Iterator[int]:
        """Lines of paragraphs that were meant as headings: `##question`."""
        for first, last in self._paragraphs(begin, end):
            yield from (i for i in range(first, last) if _UNSPACED.match(self._texts[i]))

    def _paragraphs(self, begin: int, end: int) -> list[tuple[int, int]]:
        maps = [t.map or [0, 0] for t in self._blocks if t.type == "paragraph_open"]
        return [(first, last) for first, last in maps if begin <= first < end]

    def _text(self, begin: int, end: int) -> str:
        """The blocks of a section, with the lines of each paragraph joined."""
        lines: list[str] = []
        at = begin
        for token in self._blocks:
            first, last = token.map or [0, 0]
            if not begin <= first < end:
                continue
            lines += _gap(self._texts[at:first])
            block = self._texts[first:last]
            lines += [joined(block)] if token.type == "paragraph_open" else block
            at = last
            while at > first and not self._texts[at - 1].strip():  # a list has those behind it
                at, lines = at - 1, lines[:-1]
        lines += _gap(self._texts[at:end])
        return "\n".join(lines).strip("\n")


def blocks(texts: Sequence[str], *, is_markdown: bool) -> list["Token"]:
    """The outermost blocks of a text, whose `map` has the indices of their lines.

    Front matter is none of them.
    """
    begin = _front_matter(texts) if is_markdown else 0
    text = "\n".join([*[""] * begin, *texts[begin:]])
    return [t for t in _parser(is_markdown).parse(text) if t.level == 0 and t.map]


def heading(token: "Token", texts: Sequence[str]) -> str:
    """The text of a heading, by its token and all lines."""
    first, end = token.map or [0, 0]
    if token.markup.startswith("#"):
        text = texts[first].strip()[len(token.markup) :].strip()
        return re.sub(r"(^|\s)#+$", "", text).strip()  # Markdown allows `## question ##`
    return " ".join(text.strip() for text in texts[first : end - 1])


def _gap(lines: Sequence[str]) -> list[str]:
    """Lines between blocks: definitions of links, and one blank line of those that follow."""
    kept: list[str] = []
    for line in lines:
        if line.strip() or not kept or kept[-1]:
            kept.append(line.rstrip())
    return kept


def joined(lines: Sequence[str]) -> str:
    """The lines of a paragraph as one, but for Markdown's hard line breaks."""
    text = ""
    for line in lines:
        is_hard = line.endswith(("  ", "\\"))
        text += line.strip().removesuffix("\\") + ("\n" if is_hard else " ")
    return text.strip()


def _front_matter(lines: Sequence[str]) -> int:
    """Lines of YAML at the start of the file: they describe it, as its title does."""
    if not lines or lines[0].rstrip() != _FRONT_MATTER[0]:
        return 0
    ends = (i for i, line in enumerate(lines[1:], 1) if line.rstrip() in _FRONT_MATTER)
    return next(ends, -1) + 1


@functools.cache
def _parser(is_markdown: bool) -> "MarkdownIt":
    """CommonMark and tables, without what is inside a line."""
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark").enable("table").disable("inline")
    return parser if is_markdown else parser.disable("lheading")


def _read_markdown(file: Path, name: str, piece: Piece, advance: Advance) -> Iterator[Row]:
    return read_sections(name, read_lines(file, piece, advance), is_markdown=True)


def _read_text(file: Path, name: str, piece: Piece, advance: Advance) -> Iterator[Row]:
    return read_sections(name, read_lines(file, piece, advance), is_markdown=False)


MARKDOWN = Reader("markdown", "Markdown", (".md", ".markdown"), _read_markdown)
TEXT = Reader("text", "plain text", (".txt",), _read_text)
