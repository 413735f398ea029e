"""Documents as structured text: Markdown, plain text, HTML, PDF and DOCX.

`read_document` gives sections with their headings, their text, and the page and line of each
paragraph. Rows of questions and answers, synthesis of rows and retrieval all start from it.
"""

import os
from pathlib import Path

from pipeline.core.errors import DataError
from pipeline.core.extras import require
from pipeline.data.converters.docx import read_docx
from pipeline.data.converters.html import read_html
from pipeline.data.converters.pdf import read_pdf
from pipeline.data.converters.plain import read_plain
from pipeline.data.converters.structure import (
    MAX_BYTES,
    MIB,
    Document,
    Paragraph,
    Section,
    Unusable,
)
from pipeline.data.readers.opening import explain

__all__ = ["FORMATS", "Document", "Paragraph", "Section", "read_document"]

# By suffix, the format of a document.
FORMATS = {
    ".md": "markdown", ".markdown": "markdown", ".txt": "text", ".html": "html", ".htm": "html",
    ".xhtml": "html", ".pdf": "pdf", ".docx": "docx",
}  # fmt: skip
_CONVERTERS = {"html": read_html, "pdf": read_pdf, "docx": read_docx}
_EXTRA = "documents"


def read_document(file: Path) -> Document:
    """The text of a document, by the format that its suffix names (FORMATS).

    Nothing in a document runs, and no address in it is opened.

    Raises:
        DataError: it cannot be read, is of another format, damaged, encrypted, without text, or
            too large; one line that names the file and what to do.
        MissingRuntime: it is a PDF or DOCX file, and the extra `documents` is not installed.
    """
    kind = FORMATS.get(file.suffix.lower())
    if kind is None:
        raise DataError(
            f"{file} is no document of a known format: name files that end in {', '.join(FORMATS)}"
        )
    if kind in ("pdf", "docx"):
        require(_EXTRA, str(file), "save it as HTML or text")
    try:
        if kind in ("markdown", "text"):
            return read_plain(file, kind)
        return _CONVERTERS[kind](file, _bytes(file))
    except Unusable as error:
        raise DataError(f"{file} cannot be used: {error}") from error
    except OSError as error:
        raise DataError(explain(file, error)) from error


def _bytes(file: Path) -> bytes:
    with file.open("rb") as stream:
        if (size := os.fstat(stream.fileno()).st_size) > MAX_BYTES:
            raise Unusable(
                f"it has {size // MIB} MiB, more than {MAX_BYTES // MIB}: split it into parts"
            )
        if not (raw := stream.read(MAX_BYTES + 1)):
            raise Unusable("it is empty")
        return raw
