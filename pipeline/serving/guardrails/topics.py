"""Whether a text is about the allowed topics: naive Bayes over words and parts of words."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence

from pipeline.serving.guardrails.checks import COMMON_WORDS, stem, words_of

PART = 4  # letters of a part of a word, so that other forms and typos of a word count too


class Topics:
    """
    Args:
        allowed: texts about the allowed topics. other: texts about others.
    """

    def __init__(self, allowed: Sequence[str], other: Sequence[str]) -> None:
        counts = [
            Counter(f for text in texts for f in _features(text)) for texts in (allowed, other)
        ]
        known = counts[0].keys() | counts[1].keys()
        totals = [sum(count.values()) + len(known) for count in counts]
        self._weights = {
            feature: math.log((counts[0][feature] + 1) / totals[0])
            - math.log((counts[1][feature] + 1) / totals[1])
            for feature in known
        }

    def score(self, text: str) -> float:
        """Log-odds for the allowed topics; 0 for a text of common words alone."""
        features = list(_features(text))
        unknown = sum(f[0] == "=" and f not in self._weights for f in features)
        score = sum(self._weights.get(feature, 0.0) for feature in features)
        # A word that no question of the topic has speaks for another one.
        return score - UNKNOWN * unknown


UNKNOWN = 1.0


def _features(text: str) -> Iterator[str]:
    """`=` and a word without its ending; and its beginnings."""
    for word in words_of(text):
        if word not in COMMON_WORDS and not word.isdigit():
            yield "=" + stem(word)
            for i in range(max(len(word) - PART, 0) + 1):
                if len(word) > PART:
                    yield word[i : i + PART]
