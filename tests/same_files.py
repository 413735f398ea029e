"""Compares the artifacts of two clones that ran the same commit, file by file.

    python -m tests.same_files ONE/artifacts OTHER/artifacts

Same inputs, settings, versions and machine give the same files. Files that manifests list as
`measured` hold times and are left out. Reads every file. Prints a line for each file that is not
the same, and the counts; the exit code is 1 if any is not.
"""

import argparse
import sys
from pathlib import Path

from pipeline.core.artifact import hash_files, read_manifest
from pipeline.core.paths import MANIFEST


def differing(one: Path, other: Path) -> tuple[list[str], int, int]:
    """The files that are not the same, how many were compared, and how many are measurements."""
    wrong, compared, measured = [], 0, 0
    names = {path.parent.name for place in (one, other) for path in place.glob(f"*/{MANIFEST}")}
    for stage in sorted(names):
        times: set[str] = set()
        found = []
        for place in (one / stage, other / stage):
            here = place.is_dir()
            times |= set(read_manifest(place, "").measured) if here else set()
            found.append(hash_files(place) if here else {})
        every = found[0].keys() | found[1].keys()
        measured += len(every & times)
        compared += len(every - times)
        differ = {name for name in every - times if found[0].get(name) != found[1].get(name)}
        differ = {name for name in every - times if found[0].get(name) != found[1].get(name)}
        wrong += [f"{stage}/{name}" for name in sorted(differ)]
    return wrong, compared, measured


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("one", type=Path)
    parser.add_argument("other", type=Path)
    given = parser.parse_args()
    wrong, compared, measured = differing(given.one, given.other)
    for name in wrong:
        print(f"not the same: {name}")
    print(
        f"{compared} files compared, {len(wrong)} of them not the same; {measured} measurements "
        "left out"
    )
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
