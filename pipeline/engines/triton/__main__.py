"""Start Triton with what `stage=build engine=triton` wrote, in the foreground.

    python -m pipeline.engines.triton artifacts/build
    python -m pipeline.engines.triton artifacts/build --http-port=9000 --log-verbose=1

Further arguments are tritonserver's own. HTTP is on port 8000, gRPC on 8001, metrics on 8002, all
on loopback unless `--http-address=0.0.0.0` and the like say otherwise.
"""

import argparse
import os
import signal
import sys
import tempfile
from pathlib import Path

from pipeline.core.commands import Parser, run_command
from pipeline.core.errors import MissingRuntime
from pipeline.engines.description import Description
from pipeline.engines.triton.repository import REPOSITORY
from pipeline.engines.triton.server import command, environment, find

ADDRESSES = ("http", "grpc", "metrics")


def main(words: list[str]) -> int:
    """Become tritonserver; the exit code if that fails."""
    parser = Parser(
        prog="python -m pipeline.engines.triton", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("folder", type=Path, help="what stage=build engine=triton wrote")
    parser.add_argument("options", nargs=argparse.REMAINDER, help="tritonserver's own")
    given = parser.parse_args(words)
    return run_command(lambda: _start(given.folder, given.options), files=(given.folder,))


def _start(folder: Path, options: list[str]) -> None:
    """Replace this process by Triton's.

    Raises:
        ArtifactError: the folder has no engine. MissingRuntime: Triton or the backend is not here.
    """
    given = {option.partition("=")[0] for option in options}
    own = [f"--{n}-address=127.0.0.1" for n in ADDRESSES if f"--{n}-address" not in given]
    described = Description.read(folder)
    installation = find()
    if lack := installation.missing(described.settings.get("backend", "")):
        raise MissingRuntime(f"{lack}: start this repository in NVIDIA's container of Triton")
    scratch = Path(tempfile.mkdtemp(prefix="triton-"))
    repository = folder / REPOSITORY
    more = [*own, *described.settings.get("server", ()), *options]
    words = command(installation, repository, scratch, more)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    os.execvpe(words[0], words, environment())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
