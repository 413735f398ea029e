"""Errors of a stage that runs out of disk or memory, as messages that say what to do.

    with resource_errors(scratch): ...

Knows the messages of the system and of the libraries; imports none of them.
"""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.core.errors import PipelineError, ResourceError

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
        # torch, which is not imported here, has a class of its own for GPU memory.
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
            less = f"{less_memory}, or " if less_memory else ""
            raise ResourceError(f"memory ran out: {less}run on a larger machine") from error
        causes = list(_causes(error))
        if any(isinstance(cause, OSError) and cause.errno == errno.EFBIG for cause in causes):
            raise ResourceError(
                f"a file in {scratch} is larger than its disk or `ulimit -f` allows: raise the "
                "limit, or choose artifacts=… on another disk, and run the same command again"
            ) from error
        work = scratch.parent  # which may be what could not be created
        free = shutil.disk_usage(work.parent).free
        if not any(_is_full_disk(cause, free) for cause in causes):
            raise
        variants, own = work.parent / ".variants", _mebibytes(scratch)
        raise ResourceError(
            f"the disk of {scratch} is full ({free / 2**20:.0f} MiB free): free some space and run "
            f"the same command again to resume; you can delete {variants} "
            f"({_mebibytes(variants):.0f} MiB, made with other settings) and everything else in "
            f"{work} ({_mebibytes(work) - own:.0f} MiB, unfinished)"
        ) from error


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and its chain of causes and contexts."""
    seen: set[int] = set()
    at: BaseException | None = error
    while at is not None and id(at) not in seen:
        seen.add(id(at))
        yield at
        at = at.__cause__ or at.__context__


def _is_full_disk(error: BaseException, free: int) -> bool:
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    # safetensors raises an error of its own with the system's message in it.
    if os.strerror(errno.ENOSPC) in str(error):
        return True
    return free < NEARLY_FULL and any(words in str(error) for words in TORCH_WRITES)


def _mebibytes(folder: Path) -> float:
    return sum(p.lstat().st_size for p in folder.rglob("*")) / 2**20
