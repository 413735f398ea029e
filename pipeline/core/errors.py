"""Errors that users can see, and their exit codes.

    PipelineError        1   something failed; the message says what, where and what to do next
    ├── ConfigError      2   a wrong stage, group, option, key, type, range or combination
    ├── DataError        3   data or a model folder that cannot be used
    ├── ArtifactError    4   an artifact is missing, half-written, altered or of the wrong kind
    ├── GateFailed       5   the evaluation gate refused the model
    ├── ProofFailed      6   a converted model answers differently from its source
    ├── MissingRuntime   7   this machine lacks a library, a GPU or a container that the stage needs
    ├── Busy             8   another run holds the folder, or a port is in use
    └── ResourceError    9   disk or memory ran out
    Ctrl-C             130

Each is also the standard exception that a caller would expect: `except ValueError` works.
"""

# Environment variable with the file into which a stage that DVC started writes its exit code: DVC
# itself always exits with 255.
EXIT_CODE_FILE = "PIPELINE_EXIT_CODE_FILE"


class PipelineError(Exception):
    """A failure that the user can act on: printed in one line, without a traceback."""

    exit_code = 1


class ConfigError(PipelineError, ValueError):
    exit_code = 2


class DataError(PipelineError, ValueError):
    exit_code = 3


class ArtifactError(PipelineError, ValueError):
    exit_code = 4


class GateFailed(PipelineError):
    exit_code = 5


class ProofFailed(PipelineError):
    exit_code = 6


class MissingRuntime(PipelineError, RuntimeError):
    exit_code = 7


class Busy(PipelineError, RuntimeError):
    exit_code = 8


class ResourceError(PipelineError, OSError):
    exit_code = 9
