"""DOCX: headings, paragraphs, lists and tables, with python-docx.

Text of tracked insertions counts, that of deletions does not. Headers, footers, notes, text boxes
and a table of contents are left out. The line of a block is the number of its paragraph, blank ones
included, and each row of a table counts as one.
"""

import io
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.data.converters.structure import (
    MAX_BYTES,
    MIB,
    Block,
    Document,
    Unusable,
    bounded,
    structured,
    table,
)

if TYPE_CHECKING:
    from docx.document import Document as Docx

_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_FALLBACK = "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"
_OLE = b"\xd0\xcf\x11\xe0"  # a file of old Office, or an encrypted one
_HEADING = re.compile(r"heading ([1-6])$", re.IGNORECASE)
_SKIPPED = (f"{_W}txbxContent", _FALLBACK, f"{_W}moveFrom")


def read_docx(file: Path, raw: bytes) -> Document:
    """The document of a DOCX file.

    Raises:
        Unusable: it is none, is encrypted, or unpacks to more than MAX_BYTES.
    """
    import docx
    from docx.opc.exceptions import OpcError
    from lxml.etree import LxmlError

    if raw.startswith(_OLE):
        raise Unusable(
            "it is encrypted, or a DOC file: open it in an office program, and save it as DOCX "
            "without a password"
        )
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as parts:
            size = sum(part.file_size for part in parts.infolist())
        if size > MAX_BYTES:
            raise Unusable(f"it unpacks to {size // MIB} MiB, more than {MAX_BYTES // MIB}")
        found = docx.Document(io.BytesIO(raw))
        blocks = list(bounded(_Body(found).blocks()))
    except Unusable:
        raise
    except (ValueError, zipfile.BadZipFile, zipfile.LargeZipFile, OpcError, LxmlError, KeyError,
            EOFError, NotImplementedError, AttributeError) as error:  # fmt: skip
        raise Unusable(
            f"it is truncated, or not a DOCX file ({' '.join(str(error).split())[:80]}): copy it "
            "again, or save it again as DOCX"
        ) from error
    titles = [b.text for b in blocks if b.level == 1]
    title = (found.core_properties.title or "").strip() or (titles[0] if titles else file.stem)
    return Document(title, "docx", structured(blocks))


class _Body:
    def __init__(self, found: "Docx") -> None:
        self._body = found.element.body
        self._levels: dict[str, int] = {}
        self._lists: set[str] = set()
        for style in found.styles:
            name = style.name or ""
            if match := _HEADING.match(name):
                self._levels[style.style_id] = int(match[1])
            elif name == "Title":
                self._levels[style.style_id] = 1
            elif name.startswith("List"):
                self._lists.add(style.style_id)
        self._number = 0

    def blocks(self) -> Iterator[Block]:
        """The blocks; the items of a list are one."""
        items: list[Block] = []
        for block, is_item in self._parts(self._body):
            if not is_item and items:
                yield Block("\n".join(item.text for item in items), items[0].line)
                items = []
            if is_item:
                items.append(block)
            else:
                yield block
        if items:
            yield Block("\n".join(item.text for item in items), items[0].line)

    def _parts(self, parent: Any) -> Iterator[tuple[Block, bool]]:
        for element in parent.iterchildren():
            if element.tag == f"{_W}p":
                self._number += 1
                yield self._paragraph(element)
            elif element.tag == f"{_W}tbl":
                first = self._number + 1
                rows = [
                    [_text(cell).replace("\n", " ") for cell in row.iterchildren(f"{_W}tc")]
                    for row in element.iterchildren(f"{_W}tr")
                ]
                self._number += len(rows)
                yield Block(table(rows), first), False
            elif element.tag == f"{_W}sdt":  # a content control
                gallery = next(element.iter(f"{_W}docPartGallery"), None)
                is_contents = gallery is not None and gallery.get(f"{_W}val") == "Table of Contents"
                for content in element.iterchildren(f"{_W}sdtContent"):
                    if not is_contents:
                        yield from self._parts(content)

    def _paragraph(self, element: Any) -> tuple[Block, bool]:
        text = _text(element).strip()
        style = next(element.iter(f"{_W}pStyle"), None)
        name = style.get(f"{_W}val") if style is not None else ""
        outline = next(element.iter(f"{_W}outlineLvl"), None)
        level = self._levels.get(name, 0)
        if outline is not None and not level:
            told = int(outline.get(f"{_W}val") or 9)
            level = told + 1 if told < 6 else 0
        if level:
            return Block(" ".join(text.split()), self._number, level=level), False
        is_item = name in self._lists or next(element.iter(f"{_W}numPr"), None) is not None
        return Block(f"- {text}" if is_item and text else text, self._number), is_item


def _text(element: Any) -> str:
    """The text of a paragraph or a cell, as it is with all changes accepted."""
    parts: list[str] = []

    def gather(one: Any) -> None:
        for child in one.iterchildren():
            if child.tag in _SKIPPED:
                continue
            if child.tag == f"{_W}t":
                parts.append(child.text or "")
            elif child.tag == f"{_W}tab":
                parts.append("\t" if one.tag == f"{_W}r" else "")
            elif child.tag in (f"{_W}br", f"{_W}cr"):
                parts.append("\n")
            else:
                gather(child)
                if child.tag == f"{_W}p":
                    parts.append("\n")

    gather(element)
    return "".join(parts)
