"""Checks that no line of an audit log (serve.audit_log) was changed, added or removed.

    python -m pipeline.serving.audit audit.jsonl.1 audit.jsonl

Give the files of one server, the oldest first.
"""

import sys
from pathlib import Path

from pipeline.core.commands import Parser, run_command
from pipeline.serving.middleware.audit import check


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m pipeline.serving.audit", description=__doc__.partition("\n")[0])
    parser.add_argument("files", nargs="+", type=Path, help="the oldest first")
    files = parser.parse_args(arguments).files
    return run_command(lambda: print(f"{check(files)} lines follow one another"), files=files)


if __name__ == "__main__":
    sys.exit(main())
