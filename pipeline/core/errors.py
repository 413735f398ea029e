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


def shown(value: object, most: int = 60) -> str:
    """A value for a message: as Python writes it, and no longer than `most` characters or so.

    >>> shown("x" * 10_000)
    "'xxxxxxxxxxxxxxxxxxxxxxxxxxxx...xxxxxxxxxxxxxxxxxxxxxxxxxxxxx' (10,000 characters)"
    """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    try:
        text = repr(value)
    except ValueError:  # a whole number of more digits than Python writes
        return "a number of more than 4,300 digits"
    if len(text) <= most:
        return text
    size = len(value) if isinstance(value, str) else len(text)
    return f"{text[: most // 2]}...{text[-most // 2 :]} ({size:,} characters)"


def short(text: str, most: int = 60) -> str:
    """A text for a message, without quotes, and no longer than `most` characters or so."""
    quoted = shown(text, most)
    return text if len(text) <= most and text.isprintable() else quoted


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


def error_of(code: int) -> type[PipelineError]:
    """The error with an exit code, as of another process; PipelineError if none has it."""
    return next((e for e in PipelineError.__subclasses__() if e.exit_code == code), PipelineError)
