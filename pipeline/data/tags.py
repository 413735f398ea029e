"""What a row says of itself beside its conversation, by which test questions are sliced.

Names of the fields are those of common data sets; a value is a text, a number, or a list of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

TAGS = ("tags", "category", "categories", "subcategory", "intent", "topic", "domain", "task",
        "task_name", "task_type", "difficulty")  # fmt: skip
LANGUAGES = ("language", "lang", "locale")
THREADS = ("conversation_id", "conv_id")
MOST, LONGEST = 16, 100  # tags of a row, and characters of one


@dataclass(frozen=True)
class Tags:
    """names: each one once, in the order of the fields. language: as the row names it."""

    names: tuple[str, ...] = ()
    language: str | None = None


NONE = Tags()
_NO_COLUMNS: Mapping[str, str] = {}


def tags_of(row: object, columns: Mapping[str, str] = _NO_COLUMNS) -> Tags:
    """The tags of a row as it was read. columns: by field, the column that is read in its place."""
    if not isinstance(row, dict):
        return NONE
    named = [text for field in TAGS for text in _texts(row.get(columns.get(field, field)))]
    spoken = [text for field in LANGUAGES for text in _texts(row.get(columns.get(field, field)))]
    if not named and not spoken:
        return NONE
    return Tags(tuple(dict.fromkeys(named))[:MOST], spoken[0] if spoken else None)


def thread_of(row: object, columns: Mapping[str, str] = _NO_COLUMNS) -> str | None:
    """The conversation of which a row says that it is a part, or None."""
    given = row if isinstance(row, dict) else {}
    found = (text for name in THREADS for text in _texts(given.get(columns.get(name, name))))
    return next(found, None)


def _texts(value: Any) -> list[str]:
    entries = value if isinstance(value, list | tuple) else [value]
    plain = [str(e) for e in entries if isinstance(e, str | int) and not isinstance(e, bool)]
    return [text for entry in plain if (text := " ".join(entry.split())[:LONGEST])]
