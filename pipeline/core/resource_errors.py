"""Errors of a stage that runs out of disk or memory, as messages that say what to do.

    with resource_errors(scratch): ...

Knows the messages of the system and of the libraries; imports none of them.
"""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.core.errors import PipelineError, ResourceError

NO_MEMORY = (
    "failed to map segment from shared object", "can't allocate memory", "std::bad_alloc",
    "cannot allocate memory", "Cannot allocate memory", "can't start new thread",
)  # fmt: skip
# Errors of the limits that `ulimit` sets.
LIMITS = {errno.EMFILE: "ulimit -n", errno.ENFILE: "fs.file-max", errno.EAGAIN: "ulimit -u"}
# When torch fails to write an archive, its message names neither the disk nor the system's error.
# It counts as a full disk if less than this is free.
TORCH_WRITES = ("PytorchStreamWriter failed writing", "unexpected pos")
NEARLY_FULL = 64 * 2**20


@contextmanager
def resource_errors(scratch: Path, less_memory: str = "") -> Iterator[None]:
    """Raise ResourceError for a full disk or full memory, whatever a library raises. Unfinished
    work is kept.

    scratch: the folder that the stage writes into, artifacts/.work/<stage>-….
    less_memory: how the stage can need less memory; empty if it cannot.

    Raises:
        ResourceError: disk or memory ran out.
    """
    try:
        yield
    except PipelineError:
        raise
    except Exception as error:
        found = explained(error, scratch, less_memory)
        if found is None:
            raise
        raise found from error


def explained(
    error: BaseException, scratch: Path | None = None, less_memory: str = ""
) -> ResourceError | None:
    """The error that says what this machine lacks; None if the cause is another.

    scratch: as in resource_errors; None outside of a stage.
    """
    causes = list(_causes(error))
    if any(map(_is_out_of_memory, causes)):
        less = f"{less_memory}, or " if less_memory else ""
        return ResourceError(f"memory ran out: {less}run on a larger machine")
    numbers = {cause.errno: cause for cause in causes if isinstance(cause, OSError)}
    if errno.EFBIG in numbers:
        where = f"a file in {scratch}" if scratch else _named(numbers[errno.EFBIG])
        return ResourceError(
            f"{where} is larger than its disk or `ulimit -f` allows: raise the limit, or choose "
            "artifacts=… on another disk, and run the same command again"
        )
    # Others may have been handled before the error, so only those that it names as its cause count.
    own = {cause.errno: cause for cause in _own_causes(error) if isinstance(cause, OSError)}
    for number, limit in LIMITS.items():
        if number in own:
            return ResourceError(
                f"{os.strerror(number)}: raise `{limit}`, and run the same command again"
            )
    folder = scratch.parent.parent if scratch else Path.cwd()
    free = _free(folder)
    if any(_is_full_disk(cause, free) for cause in causes):
        return _full_disk(scratch, folder, free)
    for number in (errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO):
        if number in own:
            return ResourceError(
                f"{_named(own[number])} cannot be used ({os.strerror(number)}): allow it, or "
                "choose another folder"
            )
    return None


def _full_disk(scratch: Path | None, folder: Path, free: int) -> ResourceError:
    if scratch is None:
        return ResourceError(
            f"a disk is full ({free / 2**20:.0f} MiB are free in {folder}): free some space and "
            "run the same command again"
        )
    variants, own = folder / ".variants", _mebibytes(scratch)
    return ResourceError(
        f"the disk of {scratch} is full ({free / 2**20:.0f} MiB free): free some space and run "
        f"the same command again to resume; you can delete {variants} "
        f"({_mebibytes(variants):.0f} MiB, made with other settings) and everything else in "
        f"{scratch.parent} ({_mebibytes(scratch.parent) - own:.0f} MiB, unfinished)"
    )


def _named(error: OSError) -> str:
    return str(error.filename) if error.filename else "a file"


def _free(folder: Path) -> int:
    """Bytes free on the disk of a folder, of the nearest one above that exists."""
    for place in (folder, *folder.parents):
        with suppress(OSError):
            return shutil.disk_usage(place).free
    return 0


def _is_out_of_memory(error: BaseException) -> bool:
    # torch, which is not imported here, has a class of its own for GPU memory.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    # A library that cannot be loaded, an allocation of torch's, a thread without room for a stack.
    return any(words in str(error) for words in NO_MEMORY)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and its chain of causes and contexts."""
    seen: set[int] = set()
    at: BaseException | None = error
    while at is not None and id(at) not in seen:
        seen.add(id(at))
        yield at
        at = at.__cause__ or at.__context__


def _own_causes(error: BaseException) -> Iterator[BaseException]:
    """An error and its chain of explicit causes."""
    at: BaseException | None = error
    while at is not None:
        yield at
        at = at.__cause__


def _is_full_disk(error: BaseException, free: int) -> bool:
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    # safetensors raises an error of its own with the system's message in it.
    if os.strerror(errno.ENOSPC) in str(error):
        return True
    return free < NEARLY_FULL and any(words in str(error) for words in TORCH_WRITES)


def _mebibytes(folder: Path) -> float:
    found = 0
    for path in folder.rglob("*"):
        with suppress(OSError):  # removed meanwhile
            found += path.lstat().st_size
    return found / 2**20
