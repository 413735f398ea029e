"""HTML: headings, paragraphs, lists, tables and code of a page, without its navigation.

lxml parses it, as browsers do with tags that nobody closed. No link is followed, and nothing of the
page runs.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.core.errors import DataError
from pipeline.data.converters.structure import Block, Document, Unusable, bounded, structured, table

if TYPE_CHECKING:
    from lxml.etree import _Element as Element

_DECLARED = re.compile(rb"""<meta[^>]{0,200}charset\s*=\s*["']?\s*([\w-]{1,40})""", re.IGNORECASE)
_XML = re.compile(rb"""^\s*<\?xml[^>]{0,200}encoding\s*=\s*["']([\w-]{1,40})""")
_SKIPPED = frozenset(
    "head script style noscript template nav footer aside form button select option input textarea "
    "svg math iframe object embed canvas audio video picture dialog menu".split()
)
_HEADINGS = {f"h{level}": level for level in range(1, 7)}
# A term and a summary name what is below them, as questions of a page with answers do.
_HEADINGS |= {"dt": 6, "summary": 6}
_INLINE = frozenset(
    "a abbr acronym b bdi bdo big cite code data del dfn em font i img ins kbd label mark q rp rt "
    "ruby s samp small span strike strong sub sup time tt u var wbr".split()
)
_HIDDEN = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.IGNORECASE)


def read_html(file: Path, raw: bytes) -> Document:
    """The document of a page.

    Raises:
        DataError: the bytes are not text of the encoding that the page declares (UTF-8, if none).
        Unusable: it is nested too deeply, or too long.
    """
    from lxml import etree

    text = _decoded(file, raw).replace("\0", "")
    if not text.strip():
        raise Unusable("it is empty")
    parser = etree.HTMLParser(
        encoding="utf-8", remove_comments=True, remove_pis=True, no_network=True
    )
    root = etree.fromstring(text.encode("utf-8", "replace"), parser)
    if any("excessive depth" in error.message.lower() for error in parser.error_log):
        raise Unusable("its elements are nested more than 256 deep: save its text from a browser")
    if root is None:
        raise Unusable("it holds no element")
    page = _Page()
    page.walk(_main(root))
    page.flush()
    sections = structured(bounded(page.blocks))
    told = root.findtext(".//title")
    named = [s.headings[-1] for s in sections if s.level == 1]
    title = " ".join((told or "").split()) or (named[0] if named else file.stem)
    return Document(title, "html", sections)


def _decoded(file: Path, raw: bytes) -> str:
    for mark, name in ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"),
                       (b"\xfe\xff", "utf-16")):  # fmt: skip
        if raw.startswith(mark):
            encoding = name
            break
    else:
        found = _XML.search(raw[:1024]) or _DECLARED.search(raw[:4096])
        encoding = found[1].decode("ascii") if found else "utf-8"
        # The standard for HTML reads these as Windows' superset.
        if encoding.lower() in ("iso-8859-1", "latin1", "latin-1", "ascii", "us-ascii"):
            encoding = "windows-1252"
    try:
        return raw.decode(encoding)
    except LookupError as error:
        raise Unusable(
            f"it declares the unknown encoding {encoding}: correct its <meta charset>"
        ) from error
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{file}:{line}: the bytes are not {encoding} ({error.reason}): declare the encoding "
            f'with <meta charset="…">, or convert it: `iconv -f LATIN1 -t UTF-8 {file.name} > NEW`'
        ) from error


def _main(root: "Element") -> "Element":
    """The page's content, where it says which part that is."""
    for path in (".//main", ".//*[@role='main']", ".//body"):
        found: list[Element] = root.findall(path)
        if len(found) == 1:
            return found[0]
    return root


class _Page:
    """The blocks of a page, in its order. Text between blocks is a paragraph."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self._inline: list[str] = []
        self._line = 0

    def flush(self, level: int = 0) -> None:
        text = _tidy("".join(self._inline))
        if text:
            self.blocks.append(Block(" ".join(text.split()) if level else text, self._line,
                                     level=level))  # fmt: skip
        self._inline = []

    def _say(self, text: str | None, line: int) -> None:
        if text:
            if not "".join(self._inline).strip() and text.strip():
                # A text may begin with line breaks of its own.
                blank = text[: len(text) - len(text.lstrip())]
                self._line = line + blank.count("\n")
            self._inline.append(re.sub(r"\s+", " ", text))

    def walk(self, element: "Element") -> None:
        tag, line = element.tag, int(element.sourceline or 1)
        if not isinstance(tag, str) or tag in _SKIPPED or _is_hidden(element):
            return
        if tag == "br":
            self._inline.append("\n")
        elif tag == "pre":
            self.flush()
            if code := "".join(element.itertext()).strip("\n").expandtabs():
                self.blocks.append(Block(f"```\n{code}\n```", line))
        elif tag in ("ul", "ol"):
            self.flush()
            self.blocks.append(Block("\n".join(_items(element)), line))
        elif tag == "table" and _is_data(element):
            self.flush()
            self.blocks.append(Block(table(list(_rows(element))), line))
        elif tag in _INLINE:
            self._inside(element)
        else:
            self.flush()
            self._inside(element)
            self.flush(_HEADINGS.get(tag, 0))

    def _inside(self, element: "Element") -> None:
        line = int(element.sourceline or 1)
        self._say(element.text, line)
        for child in element:
            self.walk(child)
            if child.tail:
                self._say(child.tail, int(child.sourceline or line))


def _is_hidden(element: "Element") -> bool:
    given = element.attrib
    return (
        "hidden" in given
        or given.get("aria-hidden") == "true"
        or bool(_HIDDEN.search(str(given.get("style", ""))))
    )


def _words(element: "Element", without: tuple[str, ...] = ()) -> str:
    """The text of an element on one line, without that of some elements inside it."""
    parts: list[str] = []

    def gather(one: "Element") -> None:
        parts.append(one.text or "")
        for child in one:
            if (
                isinstance(child.tag, str)
                and child.tag not in (*_SKIPPED, *without)
                and not _is_hidden(child)
            ):
                if child.tag not in _INLINE:
                    parts.append(" ")
                gather(child)
                if child.tag not in _INLINE:
                    parts.append(" ")
            parts.append(child.tail or "")

    gather(element)
    return " ".join("".join(parts).split())


def _items(found: "Element", depth: int = 0) -> Iterator[str]:
    """The lines of a list, with those of lists inside it below their item."""
    number = 0
    for item in found:
        if item.tag in ("ul", "ol"):
            yield from _items(item, depth + 1)
        if item.tag != "li" or _is_hidden(item):
            continue
        number += 1
        mark = f"{number}." if found.tag == "ol" else "-"
        if text := _words(item, ("ul", "ol")):
            yield f"{'  ' * depth}{mark} {text}"
        for inner in item.iter("ul", "ol"):
            if next(inner.iterancestors("li")) is item:
                yield from _items(inner, depth + 1)


def _is_data(found: "Element") -> bool:
    """Whether a table holds data: one with tables or headings inside it is layout."""
    return next(found.iterdescendants("table", "h1", "h2", "h3", "h4"), None) is None


def _rows(found: "Element") -> Iterator[list[str]]:
    for row in found.iter("tr"):
        yield [_words(cell) for cell in row if cell.tag in ("td", "th")]


def _tidy(text: str) -> str:
    """The text with single spaces, and the line breaks that <br> asks for."""
    lines = (" ".join(line.split()) for line in text.split("\n"))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()
