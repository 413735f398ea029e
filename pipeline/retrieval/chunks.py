"""Documents cut into passages that know their place, and are small enough to embed and to cite."""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from pipeline.core.errors import DataError
from pipeline.data.documents import Document, Paragraph, Section

_SENTENCE = re.compile(r"(?<=[.!?…。！？])\s+")
SEPARATOR = " > "  # between the parts of a place


@dataclass(frozen=True)
class Chunk:
    """A passage of a document.

    document: path below index.folder, with / between its parts. title: of the document.
    headings: those that it stands under, from the highest level. page: in a PDF, from 1.
    line: of the file, or of the page of a PDF. labels: who may see it; empty: everybody.
    """

    document: str
    title: str
    headings: tuple[str, ...]
    line: int
    page: int | None
    text: str
    labels: tuple[str, ...] = ()

    @property
    def heading(self) -> str:
        """Where it stands in its document, as the title and the headings below it."""
        parts = [self.title, *self.headings]
        return SEPARATOR.join(part for i, part in enumerate(parts) if part not in parts[:i])

    @property
    def indexed(self) -> str:
        """The text that is embedded and searched: a passage is found by its headings, too."""
        return f"{self.heading}\n{self.text}" if self.heading else self.text

    @property
    def key(self) -> str:
        """Digest of the text that is embedded: equal texts have equal vectors."""
        return hashlib.sha256(self.indexed.encode()).hexdigest()

    def id(self, ordinal: int) -> str:
        """Its name in a store. ordinal: of this text in the document; a form may repeat one."""
        place = json.dumps([self.document, self.key, sorted(self.labels), ordinal])
        return hashlib.sha256(place.encode()).hexdigest()[:32]

    def to_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False)


def read_chunk(line: bytes | str) -> Chunk:
    """
    Raises:
        DataError: it is not what `to_json` wrote.
    """
    try:
        given = json.loads(line)
        lists = {name: tuple(given[name]) for name in ("headings", "labels")}
        return Chunk(**{**given, **lists})
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DataError(
            f"a chunk of the index cannot be read ({error}): run stage=index"
        ) from error


def split(
    document: Document, name: str, labels: Sequence[str], *, size: int, overlap: int
) -> Iterator[Chunk]:
    """The passages of a document, in its order; none of a section that has no text.

    A passage ends where a paragraph, a sentence or a word ends, in this order, and never goes
    beyond its section.

    Args:
        name: how passages name the document. labels: of all its passages.
        size: most characters of a passage. overlap: most characters that it repeats of the one
            before it, in whole sentences or words.
    """
    for section in document.sections:
        for text, start in _passages(section, size, overlap):
            if text == document.title:  # the line that the title was taken from
                continue
            yield Chunk(
                *(name, document.title, section.headings, start.line, start.page),
                text,
                tuple(sorted(labels)),
            )


def _passages(section: Section, size: int, overlap: int) -> Iterator[tuple[str, Paragraph]]:
    """Passages of a section, each with the paragraph that it begins in."""
    text, start = "", None
    for paragraph in section.paragraphs:
        for i, piece in enumerate(_pieces(paragraph.text.strip(), size - overlap)):
            between = ("\n\n" if i == 0 else " ") if text else ""
            if start is not None and len(text) + len(between) + len(piece) > size:
                yield text, start
                text, start = _tail(text, overlap), paragraph
                between = " " if text else ""
            text += between + piece
            start = start or paragraph
    if start is not None and text.strip():
        yield text, start


def _pieces(text: str, size: int) -> Iterator[str]:
    """A paragraph, or its sentences, or parts of a sentence, none longer than `size`."""
    if len(text) <= size:
        if text:
            yield text
        return
    for sentence in _SENTENCE.split(text):
        while len(sentence) > size:
            cut = sentence.rfind(" ", size // 2, size + 1)
            cut = size if cut < 0 else cut
            yield sentence[:cut].rstrip()
            sentence = sentence[cut:].lstrip()
        if sentence:
            yield sentence


def _tail(text: str, most: int) -> str:
    """The last whole sentences of a text, or else its last whole words."""
    if not most:
        return ""
    tail = text[-most:]
    if len(tail) == len(text):
        return ""  # all of it would be said again
    if found := _SENTENCE.search(tail):
        return tail[found.end() :]
    return tail.partition(" ")[2] if text[-most - 1] != " " else tail
