"""Which pairs become rows: those that are grounded in their chunk, stand alone, and are new."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.data.deduplication import Comparable, Duplicates
from pipeline.data.documents import Paragraph
from pipeline.data.passages import Passages
from pipeline.data.synthesis.chunks import Chunk
from pipeline.data.synthesis.grounding import content_words, numbers, shared, support
from pipeline.data.synthesis.pairs import Pair
from pipeline.models.chat.messages import Message

LONGEST = 8_000  # letters of a question or an answer
EMPTY, ECHO, ALONE, INVENTED, UNGROUNDED, ELSEWHERE, TWICE = (
    "empty or too long", "answer repeats the question", "speaks of the text",
    "number is not in the text", "words are not in the text", "question is not about the text",
    "duplicate",
)  # fmt: skip
# A reader who asks has no text before him. Phrases of English, as most models write prompts' words.
_THE_TEXT = re.compile(
    r"\b(?:according to|in|from|by|of|on) (?:the|this|that) (?:given |above |provided |following )?"
    r"(?:text|passage|document|excerpt|paragraph|section|context|article|snippet)\b"
    r"|\bthe (?:text|passage|document|excerpt|author) (?:says?|states?|mentions?|describes?)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Judged:
    """A pair, and what was decided.

    reason: why it is not used; None if it is. detail: of the reason. support: the share of the
    answer's content words that its chunk has. place: the paragraph that the answer is nearest to.
    """

    pair: Pair
    chunk: Chunk
    support: float
    place: Paragraph
    reason: str | None = None
    detail: str = ""


class Selection:
    """Decides about pairs, one after another: a later one can be a duplicate of an earlier one.

    counts: pairs by reason, the used ones under None.

    Args:
        least: support from which an answer counts as grounded.
        threshold: similarity from which two questions are the same.
    """

    def __init__(self, least: float, threshold: float) -> None:
        self.counts: Counter[str | None] = Counter()
        self._least = least
        self._passages = Passages()
        self._questions = Duplicates(threshold, self._passages)

    def judge(self, pair: Pair, chunk: Chunk) -> Judged:
        place = _nearest(pair, chunk.paragraphs)
        found = support(pair.answer, chunk.context)
        reason, detail = self._fault(pair, chunk, found)
        if reason is None and (earlier := self._earlier(pair, f"{chunk.file}:{place.line}")):
            reason, detail = TWICE, f"of a question from {earlier}"
        self.counts[reason] += 1
        return Judged(pair, chunk, round(found, 4), place, reason, detail)

    def _fault(self, pair: Pair, chunk: Chunk, found: float) -> tuple[str | None, str]:
        question, answer = pair.question, pair.answer
        if not all(text.strip() and len(text) <= LONGEST for text in (question, answer)):
            return EMPTY, f"a question and an answer have 1 to {LONGEST:,} letters"
        if " ".join(question.split()).casefold() == " ".join(answer.split()).casefold():
            return ECHO, ""
        if phrase := _THE_TEXT.search(f"{question}\n{answer}"):
            return ALONE, phrase[0]
        if missing := numbers(f"{question}\n{answer}") - numbers(chunk.context):
            return INVENTED, ", ".join(sorted(missing))
        if found < self._least:
            words = content_words(answer)
            missing = words - shared(words, content_words(chunk.context))
            return UNGROUNDED, f"{found:.2f}; not there: {', '.join(sorted(missing)[:10])}"
        asked = content_words(question)
        if asked and not shared(asked, content_words(chunk.context)):
            return ELSEWHERE, ", ".join(sorted(asked)[:10])
        return None, ""

    def _earlier(self, pair: Pair, place: str) -> str | None:
        """Where the same question was asked before, whatever its answer."""
        turns: list[Message] = [
            {"role": "user", "content": pair.question},
            {"role": "assistant", "content": "-"},
        ]
        row = Comparable(turns, place)
        self._passages.add(row.asked)
        match = self._questions.add(row)
        return match.place if match else None


def _nearest(pair: Pair, paragraphs: Sequence[Paragraph]) -> Paragraph:
    """The paragraph that shares most with an answer and its question; the first of several."""
    words, figures = content_words(pair.answer), numbers(pair.answer)
    asked = content_words(pair.question)

    def alike(paragraph: Paragraph) -> tuple[int, int]:
        here = content_words(paragraph.text)
        of_answer = len(shared(words, here)) + len(figures & numbers(paragraph.text))
        return of_answer, len(shared(asked, here))

    return max(paragraphs, key=alike)
