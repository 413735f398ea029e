"""Commands that know nothing of an added record, in the process that added it."""

import io
from contextlib import redirect_stdout
from pathlib import Path

from pipeline.__main__ import main as pipeline


def run_commands(folder: Path, *settings: str) -> dict[str, str]:
    """What --help, plan, doctor and profiles print, with artifacts in a folder of their own."""
    common = (f"artifacts={folder / 'artifacts'}", "tracking.enabled=false")
    shown = {}
    for command in ("--help", "plan", "doctor", "profiles"):
        arguments = [command] if command == "--help" else [f"stage={command}", *common]
        if command in ("plan", "profiles"):
            arguments += settings
        if command == "doctor":
            arguments += [word for word in settings if word.startswith("model")]
        with redirect_stdout(io.StringIO()) as output:
            assert pipeline(arguments) == 0, (command, output.getvalue())
        shown[command] = output.getvalue()
    return shown
