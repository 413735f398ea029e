"""Beginnings of prompts that are not read again: a request starts from the keys and values of an
earlier one with the same first tokens.

They are found in the rows of running sequences, and in idle rows, where ended sequences are kept
until a running one needs the row. So this takes no memory of its own. A request uses what the same
client, adapter and cache_salt left alone: the time of an answer must not tell what others asked.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.engines.batching.request import Request

LEAST = 32  # tokens; fewer are read as fast as they are copied


@dataclass
class _Kept:
    """An ended sequence in an idle row. used: the number of the last use."""

    tokens: list[int]
    of: tuple[Any, ...]
    used: int = field(default=0)


class Prefixes:
    """The sequences in a model's rows.

    Args:
        model: a ModelRunner.
    """

    def __init__(self, model: Any) -> None:
        self._model, self._count = model, 0
        self._kept: dict[int, _Kept] = {}  # by row

    def start(self, request: Request, row: int, active: Sequence[Request]) -> None:
        """Prepare a row for a request, with as many tokens of its prompt as are known.

        The rows below `row` are those of `active`; the ones above are idle.
        """
        source, length = self._longest(request, active)
        if source in self._kept:
            self._kept[source].used = self._next()  # before the row is given up: it stays
        if row in self._kept and row != source:
            self._give_up(row)
        if not length:
            return
        if source != row:
            self._model.move(source, row, length)
        self._kept.pop(row, None)
        request.cached = request.cached_tokens = length

    def keep(self, request: Request, row: int, first_idle: int, *, stays: bool) -> None:
        """Keep an ended sequence.

        first_idle: the rows from there on are idle. stays: whether its own row is idle from now on;
        else another sequence comes there.
        """
        tokens = request.tokens_read
        if request.error or len(tokens) < LEAST:
            return
        entry = _Kept(tokens, _of(request), self._next())
        for place, other in list(self._kept.items()):
            if other.of == entry.of and (shared := _shared(other.tokens, tokens)):
                if shared == len(tokens):
                    other.used = entry.used  # it has all of this
                    return
                if shared == len(other.tokens):
                    del self._kept[place]  # this has all of it
        if stays:
            self._kept[row] = entry
        elif (target := self._room(first_idle, entry.used)) is not None:
            self._model.move(row, target, len(tokens))
            self._kept[target] = entry

    def forget(self, adapter: str | None = None) -> None:
        """Forget what was kept of an adapter's requests; None: of all."""
        self._kept = {
            row: kept
            for row, kept in self._kept.items()
            if adapter is not None and kept.of[0] != adapter
        }

    def _longest(self, request: Request, active: Sequence[Request]) -> tuple[int, int]:
        """The row with the longest beginning of a prompt, and its number of tokens; -1 and 0 if
        none has enough.

        The last token of a prompt is always read, because its logits choose the first one of the
        answer.
        """
        if request.sampling.prompt_logprobs is not None:
            return -1, 0
        wanted, of = request.prompt[:-1], _of(request)
        known = [(row, other.prompt, _of(other)) for row, other in enumerate(active)]
        known += [(row, kept.tokens, kept.of) for row, kept in self._kept.items()]
        found = [(_shared(tokens, wanted), row) for row, tokens, whose in known if whose == of]
        length, row = max(found, default=(0, -1))
        return (row, length) if length >= LEAST else (-1, 0)

    def _room(self, first_idle: int, used: int) -> int | None:
        """The last idle row without a kept sequence, or that of the one that was used longest ago,
        if that is longer than `used`."""
        rows = range(self._model.slots - 1, first_idle - 1, -1)
        if (free := next((row for row in rows if row not in self._kept), None)) is not None:
            return free
        oldest = min(rows, key=lambda row: self._kept[row].used, default=None)
        return oldest if oldest is not None and self._kept[oldest].used < used else None

    def _give_up(self, row: int) -> None:
        """Free a row for a request; what it has moves to a better place, or is forgotten."""
        entry = self._kept.pop(row)
        if (target := self._room(row + 1, entry.used)) is not None:
            self._model.move(row, target, len(entry.tokens))
            self._kept[target] = entry

    def _next(self) -> int:
        self._count += 1
        return self._count


def _of(request: Request) -> tuple[Any, ...]:
    """Whose a sequence is, and what else its keys and values depend on."""
    sampling = request.sampling
    return sampling.adapter, sampling.cache_salt, request.client.name


def _shared(one: list[int], other: list[int]) -> int:
    """The number of first tokens that are the same, if they are not too few."""
    if one[:LEAST] != other[:LEAST]:
        return 0
    low, high = 0, min(len(one), len(other))
    if one[:high] == other[:high]:
        return high
    while low < high:  # `low` tokens are the same, `high` are not
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
