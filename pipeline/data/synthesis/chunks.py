"""Parts of documents that a model is asked about, each with the lines that it was read from."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pipeline.core.errors import ConfigError, DataError
from pipeline.data.documents import FORMATS, Document, Paragraph, Section, read_document

_SENTENCE_END = re.compile(r"(?<=[.!?。！？])\s+|\n+")


@dataclass(frozen=True)
class Chunk:
    """Consecutive paragraphs of a document.

    file: as rows name it. title: of the document. headings: above the first paragraph.
    paragraphs: each with its line, and in a PDF its page; headings between them are among them.
    """

    file: str
    title: str
    headings: tuple[str, ...]
    paragraphs: tuple[Paragraph, ...]

    @cached_property
    def text(self) -> str:
        return "\n\n".join(paragraph.text for paragraph in self.paragraphs)

    @cached_property
    def context(self) -> str:
        """The text with the document's title and the headings above it."""
        return "\n".join([self.title, *self.headings, self.text])


def find_documents(folder: Path, patterns: Sequence[str]) -> list[Path]:
    """Documents below a folder that match the globs, each once, in the order of the patterns.

    Raises:
        ConfigError: a pattern is not a glob below the folder. DataError: it matches no file, or a
            file that is no document.
    """
    if not patterns:
        raise ConfigError(
            "synthesize.documents names no file: set it, as synthesize.documents=[*.md,*.pdf]"
        )
    found: dict[Path, None] = {}
    for pattern in patterns:
        try:
            exact = folder / pattern
            matches = [exact] if exact.is_file() else sorted(folder.glob(pattern))
        except (OSError, ValueError, NotImplementedError) as error:
            raise ConfigError(
                f"synthesize.documents: {pattern!r} must be a name or glob below {folder} ({error})"
            ) from error
        files = [file for file in matches if file.is_file()]
        if not files:
            raise DataError(
                f"synthesize.documents: no file in {folder} matches {pattern!r}: correct either of "
                "them"
            )
        for file in files:
            if file.suffix.lower() not in FORMATS:
                raise DataError(
                    f"{file} (synthesize.documents) is no document: name files that end in "
                    f"{', '.join(FORMATS)}"
                )
            found[file] = None
    return list(found)


def chunks_of(file: Path, name: str, letters: int) -> list[Chunk]:
    """The chunks of a document, of about so many letters.

    Raises:
        DataError, MissingRuntime: see read_document.
    """
    return list(split(read_document(file), name, letters))


def split(document: Document, name: str, letters: int) -> Iterator[Chunk]:
    """Sections together up to so many letters, as long as they are under one first heading; a
    longer section is cut between paragraphs, and a longer paragraph between sentences."""
    parts: list[Paragraph] = []
    size = 0
    above: tuple[str, ...] = ()
    top: tuple[str, ...] | None = None

    def chunk() -> Chunk:
        return Chunk(name, document.title, above, tuple(parts))

    for section in document.sections:
        if not section.paragraphs:
            continue
        pieces = [part for p in section.paragraphs for part in _sentences(p, letters)]
        whole = sum(len(piece.text) for piece in pieces)
        if parts and (_top(section) != top or size + whole > letters):
            yield chunk()
            parts, size = [], 0
        if parts:
            heading = section.headings[-1] if section.headings else ""
            parts += [Paragraph(heading, section.line, section.page)] if heading else []
        else:
            above, top = section.headings, _top(section)
        for piece in pieces:
            if parts and size + len(piece.text) > letters:
                yield chunk()
                parts, size, above = [], 0, section.headings
            parts.append(piece)
            size += len(piece.text)
    if parts:
        yield chunk()


def _top(section: Section) -> tuple[str, ...]:
    """The highest heading above a section; none for the sections of a text without chapters, as a
    list of questions."""
    chapters = section.level == 1 or len(section.headings) > 1
    return section.headings[:1] if chapters else ()


def _sentences(paragraph: Paragraph, letters: int) -> Iterator[Paragraph]:
    """A paragraph, in parts of at most so many letters if it is longer; each with its line."""
    if len(paragraph.text) <= letters:
        yield paragraph
        return
    begin = 0
    text = paragraph.text
    while begin < len(text):
        end = len(text)
        if end - begin > letters:
            ends = [m.end() for m in _SENTENCE_END.finditer(text, begin, begin + letters)]
            space = text.rfind(" ", begin + 1, begin + letters)
            end = ends[-1] if ends else space + 1 if space > begin else begin + letters
        if part := text[begin:end].strip():
            line = paragraph.line + text.count("\n", 0, begin)
            yield Paragraph(part, line, paragraph.page)
        begin = end
