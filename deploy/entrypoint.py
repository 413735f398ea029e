"""The container's entry point: the server, configured by NIM's variables; with arguments, a stage.

docker run … IMAGE                  the server (docs/containers.md lists the variables)
docker run … IMAGE stage=doctor     python -m pipeline stage=doctor
"""

import logging
import os
import signal
import sys
import types

LIST_PROFILES = "stage=profiles model=local model.name=model model.path=/model".split()


def main(arguments: list[str]) -> int:
    """Returns the exit code (pipeline/core/errors.py)."""
    # The first process of a container gets only signals that it handles. A starting server ends at
    # once; a running one has its own handler, and finishes its requests.
    signal.signal(signal.SIGTERM, signal.default_int_handler if arguments else _end)
    if arguments:
        from pipeline.__main__ import main as run_stage

        return run_stage(LIST_PROFILES if arguments == ["list-model-profiles"] else arguments)
    from pipeline.core.errors import PipelineError
    from pipeline.serving.container.nim_variables import translate

    try:
        launch = translate(os.environ)
        command = launch.command()
    except PipelineError as error:
        print(f"pipeline: {type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    os.environ.update(launch.environment)  # before libraries read it
    logging.disable(launch.log_level - 1)
    from pipeline.serving.__main__ import main as serve

    return serve(command)


def _end(number: int, frame: types.FrameType | None) -> None:
    sys.exit(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
