"""Checkpoints, read without running code from them, and their index written the same each time.

torch and Megatron-Core unpickle the index (`.metadata`), the state that all ranks share
(`common.pt`), and objects beside the tensors. A pickle can run any code. Here `checkpoint_index`
reads the index, the shared state holds tensors and plain values or is refused, and objects, which
no checkpoint of this pipeline has, are refused.

`check_checkpoint` does the same before a library opens the folder, so that a refusal is one line
and comes before any work.
"""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch.distributed.checkpoint.api import CheckpointException

from pipeline.core.errors import ArtifactError
from pipeline.core.monkeypatch import Replacement
from pipeline.models.pickles import only_plain_pickles
from pipeline.training.nemo.checkpoint_index import INDEX, canonical, read_index
from pipeline.training.nemo.patches import records

COMMON = "common.pt"
FORMAT = "metadata.json"
# Others are read by other code of Megatron-Core, which is not made safe here.
_FORMAT = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}


def safe_checkpoints() -> list[Replacement]:
    """Replacements around all reading and writing of checkpoints."""
    return [
        *records.INDEX_READER.by(read_metadata=_read_metadata),
        *records.INDEX_WRITER.by(finish=_finish),
        *records.OBJECT_READER.by(load_bytes=_refuse_object),
        *records.COMMON_READER.by(load_common=_load_common, load_sharded_objects=_refuse_object),
    ]


def check_checkpoint(folder: Path) -> None:
    """Refuse a checkpoint whose small files hold more than they should. Reads no weights.

    folder: of weights/.

    Raises:
        ArtifactError: names the file.
    """
    weights = folder / "weights"
    file = weights / FORMAT
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(
            f"{file} cannot be read ({type(error).__name__}): {_again(file)}"
        ) from error
    if found != _FORMAT:
        raise ArtifactError(
            f"{file} names another format of checkpoints than {_FORMAT['sharded_backend']}, which "
            f"is the only one that is read: {_again(file)}"
        )
    read_index(weights / INDEX, _again(file))
    read_common(weights / COMMON)


def read_common(file: Path) -> Any:
    """The state that all ranks share: tensors and plain values.

    Raises:
        ArtifactError: it cannot be read, or holds any other object.
    """
    try:
        with only_plain_pickles():
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ArtifactError(
            f"{file} holds objects that no checkpoint of this pipeline has, so it is not read: "
            f"{_again(file)}"
        ) from error
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, IndexError, TypeError) as error:
        raise ArtifactError(
            f"{file} cannot be read ({_first_line(error)}): {_again(file)}"
        ) from error


@contextmanager
def plain_write_errors() -> Iterator[None]:
    """Raise what went wrong when a checkpoint was written, such as a full disk, as itself."""
    try:
        yield
    except CheckpointException as error:
        raise next((cause for cause, _ in error.failures.values()), error) from error


@contextmanager
def one_line_refusals(*folders: Path) -> Iterator[None]:
    """Say in one line what is wrong with the weights of checkpoints that are being read.

    folders: of the checkpoints, for the message; the newest last.

    Raises:
        ArtifactError: a file of weights is damaged, or does not fit its index or the model.
    """
    try:
        with only_plain_pickles():
            yield
    except (CheckpointException, Exception) as error:
        cause = _failed_read(error)
        if cause is None or not folders:
            raise
        if isinstance(cause, ArtifactError | MemoryError | torch.OutOfMemoryError):
            raise cause from error
        weights = " or ".join(str(folder / "weights") for folder in folders)
        again = _again(folders[-1] / "weights" / INDEX)
        raise ArtifactError(f"{weights} cannot be read ({_first_line(cause)}): {again}") from error


def _failed_read(error: BaseException | None) -> BaseException | None:
    """What went wrong while a checkpoint was read; None if it was something else.

    torch reports a failure of any rank as a CheckpointException, which is no Exception. Megatron
    raises a CheckpointingException, and NeMo a RuntimeError with pages of text in place of both.
    """
    from megatron.core.dist_checkpointing.core import CheckpointingException

    while error is not None:
        if isinstance(error, CheckpointException):
            return next((cause for cause, _ in error.failures.values()), error)
        if isinstance(error, CheckpointingException):
            return error
        error = error.__cause__ or error.__context__
    return None


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]


def _again(file: Path) -> str:
    if "step-" in file.parent.parent.name:
        return f"remove {file.parent.parent} to train from the start"
    return f"remove {file.parent.parent} and run the stage that made it again"


def _read_metadata(reader: Any, *arguments: Any, **options: Any) -> Any:
    """FileSystemReader.read_metadata, which unpickles the file."""
    index = read_index(Path(reader._get_metadata_path(options.get("rank"))))
    index.storage_meta.load_id = reader.load_id
    return index


def _finish(writer: Any, metadata: Any, results: Any) -> None:
    """FileSystemWriter.finish, which writes an id and the folder's path into the index."""
    from torch.distributed.checkpoint.filesystem import CURRENT_DCP_VERSION

    metadata.version = CURRENT_DCP_VERSION
    metadata.storage_data = {one.index: one.storage_data for some in results for one in some}
    place = Path(writer.path) / INDEX
    temporary = place.with_name(f"{INDEX}.tmp")
    with temporary.open("wb") as stream:
        pickle.dump(canonical(metadata), stream, protocol=4)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(place)


def _load_common(strategy: Any, checkpoint_dir: Any) -> Any:
    return read_common(Path(checkpoint_dir) / COMMON)


def _refuse_object(*arguments: Any, **options: Any) -> NoReturn:
    raise ArtifactError("the checkpoint has objects beside its tensors, which are not read")
