"""Scores of a text against the expected one: sameness, shared words, shared characters.

Pure functions of two texts, 0 to 1, or NaN where a score does not apply. Exact match and word F1
follow SQuAD (arXiv:1606.05250) without its removal of articles and punctuation, which in a bank's
answers are content ("1.5 %" is not "15 %"); `normalized_match` removes them as SQuAD does. Words
are runs of letters and digits; a Chinese or Japanese character is one of its own.
"""

import math
import re
import string
import unicodedata
from collections import Counter

_CJK = "\u3040-\u30ff\u3400-\u9fff"
_WORD = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+")
_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans(dict.fromkeys(string.punctuation, " "))
_SAME = 1e-6  # relative difference of two numbers that are the same


def normalise(text: str) -> str:
    """The text without differences of case, white space and Unicode form."""
    # Folding case may undo the composed form (U+0130), so that comes last.
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(folded.split())


def words(text: str) -> list[str]:
    """The words of a normalised text."""
    return _WORD.findall(normalise(text))


def exact_match(answer: str, expected: str) -> bool:
    """Whether two texts are the same up to case, white space and Unicode form."""
    return normalise(answer) == normalise(expected)


def normalized_match(answer: str, expected: str) -> bool:
    """Whether they are the same without punctuation and English articles, too."""

    def plain(text: str) -> list[str]:
        return _ARTICLES.sub(" ", normalise(text).translate(_PUNCTUATION)).split()

    return plain(answer) == plain(expected)


def numeric_match(answer: str, expected: str) -> float:
    """Whether the last numbers of both are the same; NaN if the expected text has none."""
    wanted, found = _last_number(expected), _last_number(answer)
    if wanted is None:
        return math.nan
    return float(found is not None and math.isclose(found, wanted, rel_tol=_SAME, abs_tol=1e-12))


def _last_number(text: str) -> float | None:
    found = _NUMBER.findall(unicodedata.normalize("NFKC", text))
    return float(found[-1].replace(",", "")) if found else None


def token_f1(answer: str, expected: str) -> float:
    """Harmonic mean of the shares of words that two texts have in common: 0 to 1."""
    ours, theirs = words(answer), words(expected)
    if not ours or not theirs:
        return float(exact_match(answer, expected))
    shared = (Counter(ours) & Counter(theirs)).total()
    return 2 * shared / (len(ours) + len(theirs))


def rouge_l(answer: str, expected: str) -> float:
    """F1 of the longest common subsequence of words (Lin 2004), without stemming."""
    from rapidfuzz.distance import LCSseq

    ours, theirs = words(answer), words(expected)
    if not ours or not theirs:
        return float(exact_match(answer, expected))
    return 2 * LCSseq.similarity(ours, theirs) / (len(ours) + len(theirs))


def chrf(answer: str, expected: str) -> float:
    """chrF2 of an answer, as sacreBLEU has it (Popović 2015)."""
    from sacrebleu import sentence_chrf

    return float(sentence_chrf(answer, [expected]).score) / 100


def bleu(answer: str, expected: str) -> float:
    """BLEU of an answer, as sacreBLEU has it, with exponential smoothing of short texts."""
    from sacrebleu import sentence_bleu

    return float(sentence_bleu(answer, [expected]).score) / 100


def length(answer: str, expected: str) -> float:
    """Words of an answer."""
    return float(len(words(answer)))
