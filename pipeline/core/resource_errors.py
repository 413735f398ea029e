"""What is said when the disk or the memory runs out under a stage, and what to do then.

    with room(scratch): ...

Knows the words that the system and the libraries have for it; imports none of them.
"""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.core.errors import PipelineError, ResourceError

# torch names neither the disk nor the system's error when a write of its archives fails: it counts
# as a full disk where less than this is free.
TORCH_WRITES = ("PytorchStreamWriter failed writing", "unexpected pos")
NEARLY_FULL = 64 * 2**20


@contextmanager
def room(scratch: Path, less_memory: str = "") -> Iterator[None]:
    """Turn the words for a full disk and full memory into ours; unfinished work stays.

    scratch: the folder that the stage writes into, artifacts/.work/<stage>-….
    less_memory: what makes the stage need less memory; empty if nothing does.

    Raises:
        ResourceError: disk or memory ran out.
    """
    try:
        yield
    except PipelineError:
        raise
    except Exception as error:
        # torch, which is not imported here, has its own for a GPU's memory.
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
            less = f"{less_memory}, or " if less_memory else ""
            raise ResourceError(f"memory ran out: {less}run on a larger machine") from error
        causes = list(_causes(error))
        if any(isinstance(cause, OSError) and cause.errno == errno.EFBIG for cause in causes):
            raise ResourceError(
                f"a file in {scratch} is larger than its disk or `ulimit -f` allows: raise the "
                "limit, or choose artifacts=… on another disk, and run the same command again"
            ) from error
        work = scratch.parent  # which may be what could not be made
        free = shutil.disk_usage(work.parent).free
        if not any(_is_full_disk(cause, free) for cause in causes):
            raise
        variants, own = work.parent / ".variants", _mebibytes(scratch)
        raise ResourceError(
            f"the disk of {scratch} is full ({free / 2**20:.0f} MiB free): free some and run the "
            f"same command again; {variants} ({_mebibytes(variants):.0f} MiB, made with other "
            f"settings) and what else is in {work} ({_mebibytes(work) - own:.0f} MiB, unfinished) "
            "may go; finished work is kept"
        ) from error


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and those that it was raised from, or while they were handled."""
    seen: set[int] = set()
    at: BaseException | None = error
    while at is not None and id(at) not in seen:
        seen.add(id(at))
        yield at
        at = at.__cause__ or at.__context__


def _is_full_disk(error: BaseException, free: int) -> bool:
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    # safetensors has an error of its own around the system's words.
    if os.strerror(errno.ENOSPC) in str(error):
        return True
    return free < NEARLY_FULL and any(words in str(error) for words in TORCH_WRITES)


def _mebibytes(folder: Path) -> float:
    return sum(p.lstat().st_size for p in folder.rglob("*")) / 2**20
