"""Serve an engine's folder without the rest of the pipeline, as a container or the benchmark does.

python -m pipeline.serving --engine artifacts/build --model bank --port 8000
"""

import argparse
import socket
import sys
from pathlib import Path

from pipeline.errors import PipelineError
from pipeline.serving.address import base_url, listen, warn_if_open
from pipeline.serving.server import serve


def main() -> int:
    """Run the command; the exit code as pipeline.errors draws it."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.serving", description=__doc__)
    parser.add_argument("--engine", type=Path, required=True, help="folder that stage=build made")
    parser.add_argument("--model", required=True, help="name that clients call it by")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one")
    parser.add_argument("--max-queue", type=int, default=256, help="requests that may wait")
    parser.add_argument(
        "--fd", type=int, help="a listening socket of the parent, instead of a port"
    )
    given = parser.parse_args()
    try:
        if given.fd is not None:
            listening = socket.socket(fileno=given.fd)
        else:
            listening = listen(given.host, given.port)
        warn_if_open(listening)
        print(f"serving {given.model} on {base_url(listening)}", file=sys.stderr)
        serve(given.engine, listening, model=given.model, max_queue=given.max_queue)
    except PipelineError as error:
        print(f"pipeline: {type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
