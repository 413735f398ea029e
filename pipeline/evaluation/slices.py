"""Test questions and their slices: the same tag, the same file, or the same language."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.models.chat.messages import Message

if TYPE_CHECKING:
    from pipeline.data.dataset import Row

Slice = tuple[str, str]  # kind (tag, source or language) and name


@dataclass(frozen=True)
class Asked:
    """A test question.

    messages: the turns before the answer. source: the "file:line" that it was read from. tags: of
    its row. language: as its row names it.
    """

    messages: Sequence[Message]
    source: str
    tags: tuple[str, ...] = ()
    language: str | None = None

    @property
    def text(self) -> str:
        """The last turn before the answer."""
        return str(self.messages[-1]["content"]) if self.messages else ""

    @property
    def slices(self) -> list[Slice]:
        """The slices that the question is in."""
        found = [("tag", tag) for tag in self.tags]
        found.append(("source", self.source.rpartition(":")[0] or self.source))
        return [*found, ("language", self.language)] if self.language else found


def asked_of(row: "Row") -> Asked:
    """The question of a row of the test split."""
    return Asked(
        messages=row.messages[:-1],
        source=row.source,
        tags=tuple(row.tags),
        language=row.language,
    )


def by_slice(asked: Sequence[Asked]) -> dict[Slice, list[int]]:
    """Places of the questions of each slice, the largest slice of each kind first.

    A slice of all questions says nothing and is left out.
    """
    found: dict[Slice, list[int]] = {}
    for place, question in enumerate(asked):
        for name in question.slices:
            found.setdefault(name, []).append(place)
    kinds = {"tag": 0, "source": 1, "language": 2}
    ordered = sorted(found.items(), key=lambda item: (kinds[item[0][0]], -len(item[1]), item[0]))
    return {name: places for name, places in ordered if len(places) < len(asked)}


def places_of(slice: Slice | None, asked: Sequence[Asked]) -> list[int]:
    """Places of the questions of a slice; of None, all."""
    if slice is None:
        return list(range(len(asked)))
    return [place for place, question in enumerate(asked) if slice in question.slices]


def names_of(kind: str, asked: Sequence[Asked]) -> list[str]:
    """Names of the slices of a kind, for messages."""
    return sorted({name for question in asked for k, name in question.slices if k == kind})


def words(slice: Slice | None) -> str:
    """A slice in a sentence, as in " on tag cards"; empty for all questions."""
    return "" if slice is None else f" on {slice[0]} {slice[1]}"
