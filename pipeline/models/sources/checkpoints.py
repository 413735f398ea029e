"""Checkpoints of NeMo as models: written into the cache as Hugging Face folders, and proven.

    $XDG_CACHE_HOME/finetune-to-serve/sources/nemo/<path>/<revision>/

A revision is the digest of the checkpoint's files with their sizes and times. Its description is
converted when it is first met, and its weights when a stage needs them, each in a process of its
own (training/from_nemo.py), which keeps NeMo's libraries and the model out of this one.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.core.artifact import sha256_of_file, sha256_of_json
from pipeline.core.console import get_console
from pipeline.core.errors import DataError, PipelineError, error_of
from pipeline.core.processes import ends_with_this
from pipeline.models.sources.address import Address
from pipeline.models.sources.files import cache_folder, entry

CONVERTER = "pipeline.training.from_nemo"


class Checkpoint:
    """A checkpoint of NeMo on this machine; the name of its address is its path."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._place = Path(address.name)

    def resolve(self) -> str:
        files = self._files()
        if not files:
            raise DataError(f"{self._place} is not there: correct model.path")
        return sha256_of_json(files)

    def folder(self, revision: str) -> Path:
        return cache_folder(self.address, revision)

    def describe(self, revision: str) -> None:
        """Have config.json and the tokenizer in the folder."""
        if not (self.folder(revision) / "config.json").is_file():
            self._convert(revision, "--description")

    def whole(self, revision: str) -> dict[str, dict[str, Any]]:
        """Have all of the model in the folder; what `files.entry` makes of each file.

        Raises:
            DataError: the checkpoint cannot be read, is in no family's record, or changed.
            ProofFailed: the folder's logits differ from those of NeMo's model.
        """
        with get_console().status(f"{self._place} becomes a Hugging Face folder"):
            self._convert(revision)
        return {
            file.name: entry(sha256_of_file(file), file.stat().st_size)
            for file in sorted(self.folder(revision).iterdir())
        }

    def _files(self) -> dict[str, list[int]]:
        def inside() -> Iterator[Path]:
            yield from self._place.rglob("*") if self._place.is_dir() else [self._place]

        found = {}
        for file in inside():
            if file.is_file():
                facts = file.stat()
                name = str(file.relative_to(self._place))
                found[name] = [facts.st_size, facts.st_mtime_ns]
        return dict(sorted(found.items()))

    def _convert(self, revision: str, *options: str) -> None:
        folder = self.folder(revision)
        made = folder.with_name(f"{folder.name}.made")
        folder.parent.mkdir(parents=True, exist_ok=True)
        remove(made)
        command = [sys.executable, "-m", CONVERTER, str(self._place), str(made), *options]
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", preexec_fn=ends_with_this()
        )
        if done.returncode:
            raise _failure(done.returncode, done.stderr, self._place)
        if self.resolve() != revision:
            remove(made)
            raise DataError(
                f"{self._place} changed while it was read: run the same command again when nothing "
                "writes there"
            )
        remove(folder)
        made.rename(folder)


def remove(folder: Path) -> None:
    """Remove what an earlier conversion left."""
    import shutil

    shutil.rmtree(folder, ignore_errors=True)


def _failure(code: int, said: str, place: Path) -> PipelineError:
    """The error that the conversion ended with, of the same kind."""
    lines = [line for line in said.splitlines() if line.startswith("pipeline: ")]
    if not lines:
        last = (said.strip().splitlines() or [f"it ended with {code}"])[-1]
        return DataError(f"{place} could not be converted ({last:.160}): report it")
    text = lines[-1].removeprefix("pipeline: ").partition(": ")[2]
    return error_of(code)(text)
