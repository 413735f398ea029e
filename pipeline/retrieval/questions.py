"""Questions whose passages are known, from rows of conversations."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.core.errors import DataError
from pipeline.retrieval.bm25 import words
from pipeline.retrieval.index import Index

# Least share of an expected answer's words that its passage has.
HOLDS = 0.8


@dataclass(frozen=True)
class Question:
    """A question, its expected answer, and the rows of the passages that hold the answer."""

    text: str
    answer: str
    rows: tuple[int, ...]


def read_questions(files: Sequence[Path], index: Index) -> tuple[list[Question], int]:
    """The questions of JSON lines with `messages`, and how many of them no passage answers.

    A passage answers a question if the row names it in `source` ("FILE" or "FILE:LINE" of the
    passage's heading or text), or else if it holds the expected answer: most of its words, and of
    all passages the most.

    Raises:
        DataError: a file cannot be read, or a line is no conversation.
    """
    chunks = [index.chunk(row) for row in range(len(index))]
    texts = [frozenset(words(chunk.text)) for chunk in chunks]
    places: dict[str, list[int]] = {}
    for row, chunk in enumerate(chunks):
        places.setdefault(chunk.document, []).append(row)
        places.setdefault(f"{chunk.document}:{chunk.line}", []).append(row)
    found, unanswered = [], 0
    for text, answer, source in _pairs(files):
        rows = places.get(source or "", [])
        if source is None or not rows:
            asked = frozenset(words(answer))
            shares = [len(asked & held) / max(1, len(asked)) for held in texts]
            best = max(shares, default=0.0)
            rows = [row for row, share in enumerate(shares) if share == best >= HOLDS]
        if rows:
            found.append(Question(text, answer, tuple(rows)))
        else:
            unanswered += 1
    return found, unanswered


def _pairs(files: Sequence[Path]) -> Iterator[tuple[str, str, str | None]]:
    """The last question and answer of each conversation, and the source that it names."""
    for file in files:
        try:
            lines = file.read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(
                f"{file} cannot be read ({error}): give a file of JSON lines"
            ) from error
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                turns = row["messages"]
                question = next(t["content"] for t in reversed(turns) if t["role"] == "user")
                answer, source = turns[-1]["content"], row.get("source")
                if turns[-1]["role"] != "assistant" or not isinstance(answer, str):
                    raise ValueError("the last turn is not the assistant's text")
            except (ValueError, KeyError, TypeError, StopIteration, RecursionError) as error:
                raise DataError(
                    f"{file}:{number}: no conversation with a question and an answer ({error})"
                ) from error
            yield str(question), answer, source if isinstance(source, str) else None
