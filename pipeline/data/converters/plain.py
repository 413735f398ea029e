"""Markdown and plain text: headings as Markdown has them, and the blocks below them."""

from pathlib import Path

from pipeline.core.errors import DataError
from pipeline.data.converters.structure import (
    MAX_LETTERS,
    MIB,
    Block,
    Document,
    Unusable,
    structured,
)
from pipeline.data.readers import markdown
from pipeline.data.readers.lines import read_lines
from pipeline.data.readers.record import WHOLE, ignore


def read_plain(file: Path, kind: str) -> Document:
    """The document of a text; kind: markdown or text.

    Raises:
        DataError: a line is not UTF-8, or is too long.
        Unusable: it is empty or too large.
    """
    texts, letters = [], 0
    for line in read_lines(file, WHOLE, ignore):
        if line.fault:
            raise DataError(f"{file}:{line.number}: {line.fault}: {line.detail}")
        texts.append(line.text.rstrip("\r\n").replace("\r", " "))
        letters += len(line.text)
        if letters > MAX_LETTERS:
            raise Unusable(f"it has more than {MAX_LETTERS // MIB} million letters: split it")
    if not any(text.strip() for text in texts):
        raise Unusable("it is empty")
    is_markdown = kind == "markdown"
    blocks = []
    for token in markdown.blocks(texts, is_markdown=is_markdown):
        first, end = token.map or [0, 0]
        if token.type == "heading_open":
            heading = markdown.heading(token, texts)
            blocks.append(Block(heading, first + 1, level=int(token.tag[1])))
            continue
        block = texts[first:end]
        is_paragraph = token.type == "paragraph_open"
        text = markdown.joined(block) if is_paragraph else "\n".join(block).strip("\n")
        blocks.append(Block(text, first + 1))
    titles = [block.text for block in blocks if block.level == 1]
    # The first line of a plain text is its title, if it stands alone.
    if not titles and not is_markdown and blocks and not blocks[0].level:
        alone = blocks[0].text
        if len(alone) <= 120 and "\n" not in alone and not alone.endswith((".", "?", "!")):
            titles = [alone]
    return Document(titles[0] if titles else file.stem, kind, structured(blocks))
