"""The four tables of the project: model families, weight formats, engines and metrics.

Each model family, format, engine or metric is one record in one table, and all code reads its facts
from the record. One call adds a record, before the command runs:

    from pipeline.optimization.formats import FORMATS
    FORMATS.add(Format(name="int8_wo", ...))

Settings that name a record are checked against its table (`Choice` in config/section.py), which is
imported at its first use. Tables are light: no record imports its library.
"""

import difflib
import importlib
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, TypeVar

from pipeline.core.errors import ConfigError, shown


class Record(Protocol):
    """What every record has."""

    @property
    def name(self) -> str: ...


R = TypeVar("R", bound=Record)

# Where each table is: module and name.
PLACES = {
    "family": ("pipeline.models.families", "FAMILIES"),
    "format": ("pipeline.optimization.formats", "FORMATS"),
    "engine": ("pipeline.engines.registry", "ENGINES"),
    "metric": ("pipeline.evaluation.metrics", "METRICS"),
}


class Table(Mapping[str, R]):
    """Records by name, in the order in which they were added.

    kind: what a record is, for messages, such as "weight format".
    """

    def __init__(self, kind: str, *records: R) -> None:
        self.kind = kind
        self._records: dict[str, R] = {}
        for record in records:
            self.add(record)

    def add(self, record: R) -> R:
        """Add a record.

        Raises:
            ValueError: the table has one of this name.
        """
        if record.name in self._records:
            raise ValueError(f"{self.kind} {record.name!r} exists already: choose another name")
        self._records[record.name] = record
        return record

    def __getitem__(self, name: str) -> R:
        """The record of this name.

        Raises:
            ConfigError, a ValueError: there is none; names the nearest one, or all.
        """
        try:
            return self._records[name]
        except KeyError:
            near = difflib.get_close_matches(str(name), self._records, n=1)
            known = f"did you mean {near[0]}?" if near else f"choose from {', '.join(self)}"
            raise ConfigError(f"there is no {self.kind} {shown(name)}: {known}") from None

    def get(self, name: object, default: Any = None) -> Any:
        """The record of this name, or the default: `Mapping.get` expects a KeyError."""
        return self._records.get(str(name), default)

    def __contains__(self, name: object) -> bool:
        return name in self._records

    def __iter__(self) -> Iterator[str]:
        return iter(self._records)

    def __len__(self) -> int:
        return len(self._records)


def table(kind: str) -> Table[Any]:
    """The table of a kind: family, format, engine or metric."""
    module, name = PLACES[kind]
    return getattr(importlib.import_module(module), name)
