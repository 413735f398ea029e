"""Start Triton with what `stage=build engine=triton` wrote, in the foreground.

    python -m pipeline.engines.triton artifacts/build
    python -m pipeline.engines.triton artifacts/build --http-port=9000 --log-verbose=1

Further arguments are tritonserver's own. HTTP is on port 8000, gRPC on 8001, metrics on 8002, all
on loopback unless `--http-address=0.0.0.0` and the like say otherwise.
"""

import os
import signal
import sys
import tempfile
from pathlib import Path

from pipeline.core.errors import PipelineError
from pipeline.engines.description import Description
from pipeline.engines.triton.repository import REPOSITORY
from pipeline.engines.triton.server import command, environment, find

ADDRESSES = ("http", "grpc", "metrics")


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if arguments else 2
    folder, options = Path(arguments[0]), arguments[1:]
    given = {option.partition("=")[0] for option in options}
    own = [f"--{n}-address=127.0.0.1" for n in ADDRESSES if f"--{n}-address" not in given]
    try:
        described = Description.read(folder)
        installation = find()
        if lack := installation.missing(described.settings.get("backend", "")):
            print(f"{lack}: start this repository in NVIDIA's container of Triton", file=sys.stderr)
            return 7
        scratch = Path(tempfile.mkdtemp(prefix="triton-"))
        words = command(
            installation,
            folder / REPOSITORY,
            scratch,
            [*own, *described.settings.get("server", ()), *options],
        )
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        os.execvpe(words[0], words, environment())
    except PipelineError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
