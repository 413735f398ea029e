"""How far an answer is grounded in a text: by the numbers and the words that they share.

An answer is grounded if every number in it is in the text, and a large share of its content words
are. This is lexical overlap as in "support" or "precision" measures of question answering over
documents: it needs no model, and it errs on the side of refusing. It finds invented facts, names
and figures; it does not find an answer that turns the text around with a "not".

A word counts from four letters on, by its letters beyond three: so the short words, which are
mostly grammar, weigh little in any language. Inflected forms count as the same word. Texts in
scripts without spaces are compared by pairs of letters.
"""

import re
import unicodedata
from collections.abc import Iterable

_NUMBER = re.compile(r"(?:\d{1,3}(?:[.,'’\u00a0\u202f]\d{3})+(?!\d)|\d+)(?:[.,]\d+)?")
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_UNSPACED = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\u0e00-\u0e7f]+")
LEAST = 4  # letters of a content word
STEM = 5  # letters by which inflected forms of a longer word agree
ENDING = 3  # letters by which their lengths may differ


def numbers(text: str) -> set[str]:
    """The numbers in a text, without separators of thousands: "1,000.50" is "1000.5"."""
    return {_plain(found) for found in _NUMBER.findall(unicodedata.normalize("NFKC", text))}


def _plain(number: str) -> str:
    """One way of writing for a number; "1,5" and "1.5" are the same, and so are "5" and "5.00"."""
    digits = re.split(r"[^\d]", number)
    groups = len(digits) > 1 and all(len(group) == 3 for group in digits[1:]) and digits[0] != "0"
    if groups:
        return "".join(digits).lstrip("0") or "0"
    *whole, part = digits if len(digits) > 1 else [*digits, ""]
    part = part.rstrip("0")
    return ("".join(whole).lstrip("0") or "0") + (f".{part}" if part else "")


def content_words(text: str) -> set[str]:
    """The words of a text that carry its content, in lower case."""
    text = unicodedata.normalize("NFKC", text).casefold()
    words = {word for word in _WORD.findall(_UNSPACED.sub(" ", text)) if len(word) >= LEAST}
    for run in _UNSPACED.findall(text):
        words |= {run[i : i + 2] for i in range(max(1, len(run) - 1))}
    return words


def shared(words: Iterable[str], others: Iterable[str]) -> set[str]:
    """Those of the words that are among the others, also in an inflected form."""
    exact = set(others)
    stems: dict[str, list[int]] = {}
    for other in exact:
        if len(other) >= STEM:
            stems.setdefault(other[:STEM], []).append(len(other))
    return {
        word
        for word in words
        if word in exact
        or any(abs(len(word) - length) <= ENDING for length in stems.get(word[:STEM], ()))
        or (len(word) == LEAST and any(word + end in exact for end in ("s", "e", "n", "es", "en")))
        or (len(word) == STEM and word[:LEAST] in exact)
    }


def support(answer: str, text: str) -> float:
    """The share of an answer's content words that the text has, by their weight; 1 for an answer
    without any, as "Yes." or a number alone. 0 if a number of the answer is not in the text."""
    if numbers(answer) - numbers(text):
        return 0.0
    words = content_words(answer)
    total = sum(map(_weight, words))
    return sum(map(_weight, shared(words, content_words(text)))) / total if total else 1.0


def _weight(word: str) -> int:
    return max(1, len(word) - LEAST + 1)
