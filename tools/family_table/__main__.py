"""The command of the table: see tools/family_table/__init__.py."""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pipeline.models.families import FAMILIES
from tools.family_table.page import PAGE, ROOT, digest_of, read_record, render, write_record


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.family_table", description=__doc__)
    parser.add_argument("families", nargs="*", metavar="FAMILY", help="default: all of them")
    parser.add_argument("--page", action="store_true", help="only write the page")
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)  # of one family's process
    given = parser.parse_args()
    if unknown := set(given.families) - set(FAMILIES):
        parser.error(
            f"no such family: {', '.join(sorted(unknown))}; there are {', '.join(FAMILIES)}"
        )
    if given.into:
        return _run_here(given.families[0], given.into)
    record, failed = read_record(), []
    for family in [] if given.page else given.families or list(FAMILIES):
        started = time.monotonic()
        cells = _run_apart(family)
        if cells is None:
            failed.append(family)
            continue
        record[family] = {"digest": digest_of(family), "cells": cells}
        filled = sum("refusal" not in cell for cell in cells.values())
        print(f"{family}: {filled} cells ran, {time.monotonic() - started:.0f} s", flush=True)
        write_record(record)
    PAGE.write_text(render(read_record()), encoding="utf-8")
    print(f"written: {PAGE.relative_to(ROOT)}" + (f"; failed: {failed}" if failed else ""))
    return bool(failed)


def _run_apart(family: str) -> dict[str, dict[str, object]] | None:
    """The cells of a family, run in a process of its own; None: it failed and said why."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "cells.json"
        command = [sys.executable, "-m", "tools.family_table", family, "--into", str(result)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode or not result.is_file():
            print(f"{family} failed:\n{done.stderr[-3000:]}", file=sys.stderr)
            return None
        return json.loads(result.read_text())  # type: ignore[no-any-return]


def _run_here(family: str, result: Path) -> int:
    from pipeline.optimization import ptq
    from tests.integration.family_case import MODELS
    from tools.family_table.cells import as_json, run_family

    ptq.modelopt()  # before transformers, as the stages do
    folder = result.parent
    model = MODELS[family](folder / "model")
    result.write_text(json.dumps(as_json(run_family(family, model, folder))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
