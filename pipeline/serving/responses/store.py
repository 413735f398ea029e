"""Responses that are kept for a while, so that a request can go on with one: a bounded number, in
memory, each seen only by the client that it was made for."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from pipeline.serving.openai.bodies import size_of

MOST_CHARACTERS = 1 << 26  # of all responses together


@dataclass(frozen=True)
class Kept:
    """
    Attributes:
        owner: whose it is. body: the response.
        items: of the request's input. messages: the whole conversation, with the response's.
    """

    owner: str
    body: dict[str, Any]
    items: list[Any]
    messages: list[dict[str, Any]]
    size: int


class ResponseStore:
    """
    Args:
        most: responses at most; 0 keeps none.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self._size = 0

    def put(
        self, owner: str, body: dict[str, Any], items: list[Any], messages: list[dict[str, Any]]
    ) -> None:
        """Keep a response; the oldest ones make room."""
        size = size_of([body, items, messages], MOST_CHARACTERS)
        if not self.most or size > MOST_CHARACTERS:
            return
        self._kept[body["id"]] = Kept(owner, body, items, messages, size)
        self._size += size
        while len(self._kept) > self.most or self._size > MOST_CHARACTERS:
            _, oldest = self._kept.popitem(last=False)
            self._size -= oldest.size

    def get(self, owner: str, name: str) -> Kept | None:
        """A response of this owner."""
        kept = self._kept.get(name)
        return kept if kept and kept.owner == owner else None

    def delete(self, owner: str, name: str) -> bool:
        """Whether there was one."""
        kept = self.get(owner, name)
        if kept:
            del self._kept[name]
            self._size -= kept.size
        return kept is not None
