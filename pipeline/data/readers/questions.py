"""Questions and answers of a text that marks them: with Q: and A:, or with numbers.

    Q: When do you open?          1. When do you open?
    A: At nine.                   At nine.

Words of other forms: Question 1: and Answer:, Frage: and Antwort:, with or without ** around them.
A numbered line is a question if the numbers rise from 1 and a text is below each, or behind its
question mark.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

_EDGE = r"\s{0,3}(?:\d{1,3}[.)]\s+)?[*_]{0,2}"
_END = r"\s*\d{0,3}\s*[*_]{0,2}\s*[:.)][*_]{0,2}(?:\s+|$)"
_QUESTION = re.compile(rf"{_EDGE}(?:Q|Question|Frage){_END}", re.IGNORECASE)
_ANSWER = re.compile(rf"{_EDGE}(?:A|Answer|Antwort){_END}", re.IGNORECASE)
_NUMBERED = re.compile(r"\s{0,3}[*_]{0,2}(\d{1,3})[.)]\s+")
_HEADING = re.compile(r"\s{0,3}#{1,6}\s")
_LEAST = 2  # numbered questions


@dataclass(frozen=True)
class Question:
    """Where a question begins. line, body: indices of its first line and of its answer's."""

    line: int
    body: int
    text: str


@dataclass(frozen=True)
class Faq:
    """The questions of a text, and its lines without questions and marks before answers."""

    questions: list[Question]
    lines: list[str]


def find_questions(lines: Sequence[str]) -> Faq | None:
    """The marked questions of a text; None if it marks none."""
    return _lettered(lines) or _numbered(lines)


def _lettered(lines: Sequence[str]) -> Faq | None:
    """Questions between Q: and A:. One without an answer has an empty one."""
    asks = [i for i, line in enumerate(lines) if _QUESTION.match(line)]
    if not asks or not any(_ANSWER.match(line) for line in lines[asks[0] + 1 :]):
        return None
    rest, found = list(lines), []
    for begin, end in zip(asks, [*asks[1:], len(lines)], strict=True):
        answer = next((i for i in range(begin + 1, end) if _ANSWER.match(lines[i])), None)
        body = begin + 1 if answer is None else answer
        said = [_QUESTION.sub("", lines[begin], count=1), *lines[begin + 1 : body]]
        rest[begin:body] = [""] * (body - begin)
        if answer is not None:
            rest[answer] = _ANSWER.sub("", lines[answer], count=1)
        found.append(Question(begin, body, _plain(said)))
    return Faq(found, rest)


def _numbered(lines: Sequence[str]) -> Faq | None:
    numbers = {i: match for i, line in enumerate(lines) if (match := _NUMBERED.match(line))}
    asks = any("?" in lines[i] for i in numbers)
    starts: list[int] = []
    for i, match in numbers.items():
        if int(match[1]) == len(starts) + 1 and (not asks or "?" in lines[i]):
            starts.append(i)
    if len(starts) < _LEAST or any(_HEADING.match(line) for line in lines[starts[0] :]):
        return None
    rest, found = list(lines), []
    for begin, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        asked = lines[begin][numbers[begin].end() :]
        question, mark, answer = asked.partition("? ")
        if mark and answer.strip():
            found.append(Question(begin, begin, _plain([question + "?"])))
            rest[begin] = answer
        elif any(line.strip() for line in lines[begin + 1 : end]):
            found.append(Question(begin, begin + 1, _plain([asked])))
            rest[begin] = ""
        else:
            return None  # a list, and no questions
    return Faq(found, rest)


def _plain(lines: Sequence[str]) -> str:
    text = " ".join(" ".join(lines).split())
    return text.strip("*_ ") if text.count("*") + text.count("_") else text
