"""Prompt lookup: what may follow is copied from where the last tokens stood before.

The model reads the copied tokens in one pass and says after each of them what it would have chosen.
As long as the two are the same, a pass gives several tokens (arXiv:2304.04487). The tokens that a
request gets are those that the model chooses, so only their number in a pass changes.
"""

from collections.abc import Sequence

NGRAMS = (3, 2)  # numbers of last tokens that are looked for, the longest first
LONGEST_PAUSE = 31  # steps
# Bytes of the index for each token of a sequence: two entries of a dictionary.
INDEX_BYTES = 256
_BITS = 24  # of a token id


class PromptLookup:
    """Drafts for one sequence.

    A draft that is wholly right is followed by one of twice the length, another one by one as long
    as its right part. After a draft of which nothing is right comes a pause, which doubles each
    time: where nothing repeats, that leaves next to no cost.

    Args:
        most: tokens of a draft at most.

    Attributes:
        drafted, accepted: tokens that were proposed, and those of them that were right.
    """

    def __init__(self, most: int) -> None:
        self._most = self._width = most
        self._pause = self._waits = 0
        self._tokens: list[int] = []
        self._after: tuple[dict[int, int], ...] = tuple({} for _ in NGRAMS)
        self._indexed = 0  # tokens whose n-grams are in the index
        self.drafted = self.accepted = 0

    def draft(self, prompt: Sequence[int], answer: Sequence[int], limit: int) -> list[int]:
        """Tokens that may follow; empty if nothing is known or worth a try.

        prompt, answer: the sequence, which only grows from call to call.
        limit: tokens of the draft at most.
        """
        tokens = self._tokens
        if not tokens:
            tokens += prompt
        tokens += answer[len(tokens) - len(prompt) :]
        if self._waits:
            self._waits -= 1
            return []
        width = min(self._width, limit)
        if width < 1:
            return []
        self._index_all_but_last()
        for size, after in zip(NGRAMS, self._after, strict=True):
            if len(tokens) < size:
                continue
            place = after.get(_key(tokens[-size:]))
            if place is not None:
                found = tokens[place : place + width]
                while len(found) < width:  # it reaches the end: what repeats goes on repeating
                    found += found[: width - len(found)]
                return found
        return []

    def judge(self, proposed: int, right: int) -> None:
        """Take note of how many tokens of a draft were right."""
        self.drafted += proposed
        self.accepted += right
        if right == proposed:
            self._width = min(self._most, max(2 * proposed, self._width))
        else:
            self._width = max(1, right)
        self._pause = 0 if right else min(2 * self._pause + 1, LONGEST_PAUSE)
        self._waits = self._pause

    def _index_all_but_last(self) -> None:
        """Note for every n-gram but the last one what place comes after it; later ones count."""
        tokens = self._tokens
        for end in range(self._indexed + 1, len(tokens)):
            for size, after in zip(NGRAMS, self._after, strict=True):
                if end >= size:
                    after[_key(tokens[end - size : end])] = end
        self._indexed = max(self._indexed, len(tokens) - 1)


def _key(tokens: Sequence[int]) -> int:
    key = 0
    for token in tokens:
        key = key << _BITS | token
    return key
