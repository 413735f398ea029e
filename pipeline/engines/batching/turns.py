"""Whose request goes next, so that one client's requests cannot make the others wait.

The next request is one of the client that has the fewest running sequences. Among equals it is the
client whose last turn is the longest ago. The connections of one client take turns in the same way,
because a proxy without API keys brings many people under one address. One connection's requests
keep their order.
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
        self._last: dict[Client | str, int] = {}  # the turn that a client or connection last had
        self._count = 0

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
            last = self._last
            chosen = min(
                first,
                key=lambda c: [(busy.get(o, 0), last.get(o, 0)) for o in (c.name, c)],
            )
        self._note(chosen, {*first, *(c.name for c in first)})
        return first[chosen]

    def _note(self, chosen: Client, present: set[Client | str]) -> None:
        """Remember the turn; clients without waiting requests start anew."""
        self._count += 1
        self._last = {one: turn for one, turn in self._last.items() if one in present}
        self._last[chosen] = self._last[chosen.name] = self._count
