"""What a model is told of the passages: the same text in training rows and when it is served.

Passages are data. They stand between marks that they cannot write themselves, after an instruction
that says what they are, and hold no control token of the model.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.retrieval.chunks import Chunk

OPEN, CLOSE = "<passages>", "</passages>"
_MARKS = re.compile(r"<(?=\s*/?\s*passages?\b)", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\u200b-\u200f\u202a-\u202e\u2060-\u2069]")


@dataclass(frozen=True)
class Passage:
    """What the model is told of a chunk. text: the chunk's, or what a rail made of it."""

    chunk: Chunk
    text: str
    score: float


def render(
    instruction: str,
    question: str,
    passages: Sequence[Passage],
    neutralize: Callable[[str], str] = str,
) -> str:
    """The user's turn: instruction, numbered passages, question.

    neutralize: breaks up the model's control tokens (Chat.neutralize).
    """
    parts = [
        f"[{number}] {_plain(passage.chunk.heading, neutralize)}\n"
        f"{_plain(passage.text, neutralize)}"
        for number, passage in enumerate(passages, 1)
    ]
    return "\n\n".join([instruction, "\n\n".join([OPEN, *parts, CLOSE]), question])


def _plain(text: str, neutralize: Callable[[str], str]) -> str:
    """Without what ends the passages, writes turns, or is invisible."""
    return neutralize(_MARKS.sub("", _CONTROL.sub("", text)))
