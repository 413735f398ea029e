"""Which registered version a server runs, and the interface of what tells it of another one."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class ServedVersion:
    """A registered version. name: of the registered model. engine: digest of what is served."""

    name: str
    number: int
    engine: str

    @property
    def fields(self) -> dict[str, Any]:
        """What the API says of it."""
        return {"version": str(self.number), "engine_digest": self.engine}


@dataclass(frozen=True)
class Release:
    """A version whose files are here."""

    folder: Path
    version: ServedVersion


class Followed(Protocol):
    """An alias of the registry (pipeline/deployment/following.py). Each call may block."""

    name: str  # of the registered model
    alias: str

    def look(self) -> int | None:
        """The version that the alias names now; None if it names none.

        Raises:
            PipelineError: the registry does not answer.
        """

    def fetch(self, number: int) -> Release:
        """A version's engine, pulled if it is not here.

        Raises:
            PipelineError: it cannot be fetched, or cannot run here.
        """

    def tell(self, number: int | None, address: str) -> None:
        """Tell the registry which version runs here; None: none does. Never raises."""
