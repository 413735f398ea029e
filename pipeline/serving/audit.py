"""Checks that no line of an audit log (serve.audit_log) was changed, added or removed.

    python -m pipeline.serving.audit audit.jsonl.1 audit.jsonl

Give the files of one server, the oldest first.
"""

import argparse
import sys
from pathlib import Path

from pipeline.core.errors import DataError
from pipeline.serving.middleware.audit import check


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.serving.audit", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("files", nargs="+", type=Path, help="the oldest first")
    try:
        count = check(parser.parse_args(arguments).files)
    except DataError as error:
        print(f"pipeline: DataError: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{count} lines follow one another")
    return 0


if __name__ == "__main__":
    sys.exit(main())
