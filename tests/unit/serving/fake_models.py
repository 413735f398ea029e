"""Models without weights, for tests of the code around models."""

import threading
from collections.abc import Callable, Sequence

import numpy as np

from pipeline.models.chat.renderer import Chat

GARBAGE = [-1]


class ListModel:
    """A batching.ModelRunner whose cache holds the tokens themselves, and which checks its use.

    Args:
        follow: the token that comes after a sequence.
    """

    def __init__(
        self,
        follow: Callable[[Sequence[int]], int],
        *,
        vocab_size: int = 400,
        slots: int = 4,
        max_seq_len: int = 64,
    ) -> None:
        self.slots, self.max_seq_len, self.vocab_size = slots, max_seq_len, vocab_size
        self.batches: list[int] = []  # rows in each decode
        self.prompt_parts: list[int] = []  # tokens in each prefill
        self.gate = threading.Semaphore(0)
        self.gated = False  # each decode then waits for the gate
        self.error: Exception | None = None  # of the next step, for every sequence
        self.batch_error: Exception | None = None  # of the next step, but of no sequence alone
        self._failing: Exception | None = None
        self._follow = follow
        self._rows: list[list[int]] = [list(GARBAGE) for _ in range(slots)]

    def prefill(self, row: int, ids: Sequence[int], start: int) -> np.ndarray:
        if start and self._failing:
            raise self._failing
        self._failing = None
        kept = self._rows[row][:start]
        assert len(kept) == start, "a prompt is read in order"
        self._rows[row] = [*kept, *ids]
        self.prompt_parts.append(len(ids))
        return self._logits([self._rows[row][: start + i + 1] for i in range(len(ids))])

    def decode(self, ids: Sequence[int], lengths: Sequence[int]) -> np.ndarray:
        if self.gated:
            self.gate.acquire()
        self._failing, self.error = self.error, None
        error, self.batch_error = self._failing or self.batch_error, None
        if error:
            raise error
        self.batches.append(len(ids))
        for row, (token, length) in enumerate(zip(ids, lengths, strict=True)):
            assert length == len(self._rows[row]) + 1, "the cache holds all tokens but the last"
            self._rows[row].append(token)
        return self._logits(self._rows[: len(ids)])

    def move(self, source: int, target: int, length: int) -> None:
        assert length <= len(self._rows[source]), "a sequence is copied whole"
        self._rows[target] = self._rows[source][:length]

    def _logits(self, sequences: Sequence[Sequence[int]]) -> np.ndarray:
        logits = np.zeros((len(sequences), self.vocab_size), np.float32)
        for row, sequence in enumerate(sequences):
            assert -1 not in sequence, "a row that nothing was written to is read"
            logits[row, self._follow(sequence)] = 10
        return logits


def mix(sequence: Sequence[int]) -> int:
    """A token that depends on every token before it and on their order."""
    value = 7
    for token in sequence:
        value = (value * 31 + token) % 397
    return value


def say(chat: Chat, text: str) -> Callable[[Sequence[int]], int]:
    """Answers every conversation with `text`, and anything else with its first token."""
    answer = [*chat.tokenizer.encode(text, add_special_tokens=False).ids, chat.stop_ids[0]]
    ending = chat.prompt([{"role": "user", "content": "x"}])[-2:]

    def follow(sequence: Sequence[int]) -> int:
        for at in range(len(sequence), 1, -1):
            if list(sequence[at - 2 : at]) == ending:
                return answer[min(len(sequence) - at, len(answer) - 1)]
        return answer[0]

    return follow
