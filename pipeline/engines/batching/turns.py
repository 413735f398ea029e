"""Whose request goes next, so that one client's requests cannot make the others wait.

Requests of the highest priority go first. Among them the next request is one of the client that has
the fewest running sequences for its weight. Among equals it is the client whose turn comes first in
virtual time: a turn moves a client 1 / weight further, so that a client of weight 2 has two turns
for each one of the others, and clients of equal weight take turns. The connections of one client
take turns in the same way, because a proxy without API keys brings many people under one address.
One connection's requests keep their order.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol

from pipeline.engines.base import Client


class Asked(Protocol):
    """A request, of which only the sender counts here."""

    client: Client


class Turns:
    """The order of requests; the caller holds a lock."""

    def __init__(self) -> None:
        # By client and connection: the virtual time of its next turn, and the number of its last.
        self._next: dict[Client | str, tuple[float, int]] = {}
        self._now, self._count = 0.0, 0

    def next(self, waiting: Sequence[Asked], running: Iterable[Asked]) -> int:
        """The index in `waiting`, which is in order of arrival, of the request to start."""
        first: dict[Client, int] = {}
        for index, request in enumerate(waiting):
            first.setdefault(request.client, index)
        chosen = next(iter(first))
        if len(first) > 1:
            busy: dict[Client | str, int] = {}
            for request in running:
                client = request.client
                for one in (client, client.name):
                    busy[one] = busy.get(one, 0) + 1

            def order(client: Client) -> list[object]:
                both = (client.name, client)
                shares = [(busy.get(o, 0) / client.weight, self._turn(o)) for o in both]
                return [-client.priority, *shares]

            chosen = min(first, key=order)
        self._note(chosen, {*first, *(c.name for c in first)})
        return first[chosen]

    def _turn(self, one: Client | str) -> tuple[float, int]:
        due, last = self._next.get(one, (0.0, 0))
        return max(due, self._now), last

    def _note(self, chosen: Client, present: set[Client | str]) -> None:
        """Remember the turn; clients without waiting requests start anew."""
        self._count += 1
        turns = {one: self._turn(one) for one in (chosen.name, chosen)}
        self._now = turns[chosen.name][0]
        self._next = {one: turn for one, turn in self._next.items() if one in present}
        for one, (due, _) in turns.items():
            self._next[one] = due + 1 / chosen.weight, self._count
