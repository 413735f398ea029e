"""Fills the disk, or uses up its inodes, under every stage's commit, then gives it room again.

    python -m tests.full_disk
    python -m tests.full_disk --stages prepare --steps 3

Each stage runs on a small tmpfs with so much room that it ends at another place: from none to all
that it needs. It must end with a documented exit code and one line, and the same command must
succeed once there is room. The same with a limit of the size of files, which needs no root. Prints
the counts, and what went wrong; the exit code is 1 if anything did. The stages' work is replayed
(tests/replayed_stage.py).
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.core.artifact import open_artifact
from tests.replayed_chain import Counts, ReplayedChain

PAGE = 4096
ROOMY = "size=256m,nr_inodes=100k"


def can_mount(folder: Path) -> bool:
    try:
        with disk(folder):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


@contextmanager
def disk(folder: Path) -> Iterator[Path]:
    """A tmpfs for the duration of a block."""
    folder.mkdir(parents=True, exist_ok=True)
    mount(folder, ROOMY)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def mount(folder: Path, options: str, *more: str) -> None:
    command = ["mount", "-t", "tmpfs", "-o", ",".join([*more, options]), "tmpfs", str(folder)]
    subprocess.run(command, check=True, capture_output=True)


def used(folder: Path) -> tuple[int, int]:
    """Bytes and inodes."""
    found = os.statvfs(folder)
    return (found.f_blocks - found.f_bfree) * found.f_frsize, found.f_files - found.f_ffree


def rooms(chain: ReplayedChain, stage: str, steps: int) -> Iterator[tuple[str, int, int]]:
    """What is free: a name, bytes and inodes."""
    files = open_artifact(chain.made / stage).manifest.files.values()
    need = sum(-(-entry["bytes"] // PAGE) * PAGE for entry in files) + 8 * PAGE
    for step in range(steps):
        free = need * step // steps // PAGE * PAGE
        yield f"{free} bytes free", free, 10_000
    most = len(files) + 24
    for step in range(steps):
        free = most * step // steps
        yield f"{free} inodes free", 2**26, free


def fill(chain: ReplayedChain, stage: str, folder: Path, steps: int, counts: Counts) -> None:
    for name, size, inodes in rooms(chain, stage, steps):
        what = f"{stage} with {name}"
        with disk(folder):
            artifacts = folder / "artifacts"
            chain.prepare(stage, artifacts)
            taken, files = used(folder)
            mount(folder, f"size={taken + size},nr_inodes={files + inodes}", "remount")
            counts.see(what, chain.run(stage, artifacts))
            mount(folder, ROOMY, "remount")
            chain.check(what, stage, artifacts, counts)


def limit(chain: ReplayedChain, stage: str, folder: Path, steps: int, counts: Counts) -> None:
    files = open_artifact(chain.made / stage).manifest.files.values()
    largest = max(entry["bytes"] for entry in files)
    for step in range(steps):
        size = largest * step // steps
        artifacts = folder / str(step)
        chain.prepare(stage, artifacts)

        def no_larger(size: int = size) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

        what = f"{stage} with files of at most {size} bytes"
        counts.see(what, chain.run(stage, artifacts, limit=no_larger))
        chain.check(what, stage, artifacts, counts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--stages", nargs="*")
    given = parser.parse_args()
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    limited, filled = Counts(), Counts()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        chain = ReplayedChain(folder)
        mounts = can_mount(folder / "disk")
        for stage in given.stages or chain.stages:
            limit(chain, stage, folder / f"limit-{stage}", given.steps, limited)
            limited.tell(f"limits of files, {stage}")
            if mounts:
                fill(chain, stage, folder / "disk", given.steps, filled)
                filled.tell(f"full disks and inodes, {stage}")
    print(f"limits of the size of files: {limited}")
    print(f"full disks and full inodes: {filled}" if mounts else "no tmpfs can be mounted here")
    for line in [*limited.bad, *filled.bad]:
        print(line, file=sys.stderr)
    return int(bool(limited.bad or filled.bad))


if __name__ == "__main__":
    sys.exit(main())
