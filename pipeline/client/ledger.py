"""A file of what was asked and answered, one JSON object a line, so that nothing is paid twice.

A line is written before a request is sent, with the most that it can cost, and another when its
answer is there. A request without the second one was interrupted, or nobody knows what it cost: it
counts in full. Another run with the same file goes on from there.
"""

import fcntl
import json
from decimal import Decimal, InvalidOperation
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pipeline.client.budget import NOTHING, Use
from pipeline.core.errors import ArtifactError, Busy


class Ledger:
    """The open file; a context manager.

    Args:
        file: made if it is not there, its folder too.

    Raises:
        Busy: another run writes it.
        ArtifactError: a line is not as this class writes it.

    Attributes:
        used: what all requests used, those of earlier runs included.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._answers: dict[str, dict[str, Any]] = {}
        self._open: dict[int, Use] = {}
        self._next = 0
        self.used = NOTHING
        file.parent.mkdir(parents=True, exist_ok=True)
        self._stream = file.open("a+b")
        try:
            try:
                fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Busy(f"another run writes {file}: wait until it has ended") from None
            self._read()
        except BaseException:
            self._stream.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stream.close()

    def find(self, key: str) -> dict[str, Any] | None:
        """The answer to a request, as `answered` was given it; None if there is none."""
        return self._answers.get(key)

    def sending(self, key: str, most: Use) -> int:
        """Record that a request is about to be sent. Returns its number."""
        number, self._next = self._next, self._next + 1
        self._write({"sent": number, "key": key, **_as_json(most)})
        self._open[number] = most
        self.used += most
        return number

    def answered(self, number: int, key: str, answer: dict[str, Any], use: Use) -> None:
        """Record the answer to a request, and what it used."""
        self._write({"answered": number, "key": key, **_as_json(use), "answer": answer})
        self._settle(number, use)
        self._answers[key] = answer

    def refused(self, number: int) -> None:
        """Record that the server refused a request, which costs nothing."""
        self._write({"refused": number})
        self._settle(number, NOTHING)

    def _settle(self, number: int, use: Use) -> None:
        self.used = self.used - self._open.pop(number) + use

    def _write(self, entry: dict[str, Any]) -> None:
        self._stream.write(json.dumps(entry, ensure_ascii=False).encode(errors="replace") + b"\n")
        self._stream.flush()

    def _read(self) -> None:
        self._stream.seek(0)
        end = 0
        for line_number, line in enumerate(self._stream, 1):
            if not line.endswith(b"\n"):
                self._stream.truncate(end)  # a killed run did not finish the last line
                break
            end += len(line)
            try:
                self._take(json.loads(line))
            except (ValueError, KeyError, TypeError, InvalidOperation, RecursionError) as error:
                raise ArtifactError(
                    f"{self._file}:{line_number} is not a line of this program ({error}): delete "
                    "the file to ask everything again"
                ) from None

    def _take(self, entry: dict[str, Any]) -> None:
        if "sent" in entry:
            number, use = int(entry["sent"]), _use(entry)
            self._open[number] = use
            self._next = max(self._next, number + 1)
            self.used += use
        elif "answered" in entry:
            self._settle(int(entry["answered"]), _use(entry))
            self._answers[str(entry["key"])] = dict(entry["answer"])
        else:
            self._settle(int(entry["refused"]), NOTHING)


def _as_json(use: Use) -> dict[str, Any]:
    return {"tokens": use.tokens, "cost": str(use.cost)}


def _use(entry: dict[str, Any]) -> Use:
    return Use(int(entry["tokens"]), Decimal(entry["cost"]))
