"""The origin of results, which every results file begins with: command, commit, date, hardware."""

import argparse
import os
import platform
import subprocess
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def parser_of(doc: str | None) -> argparse.ArgumentParser:
    """The options of every benchmark: the output file, and the commit. doc: of the script."""
    parser = argparse.ArgumentParser(description=(doc or "").split("\n\n")[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--commit", help="of the source tree, if git is not available")
    return parser


def origin(command: str, packages: Iterable[str], commit: str | None = None) -> dict[str, Any]:
    """Command, commit, date, hardware, and versions of Python and packages.

    commit: used if git is not available.
    """
    return {
        "command": command,
        "commit": commit or _commit(),
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": hardware(),
        "versions": versions(packages),
    }


def hardware() -> dict[str, Any]:
    """This machine's processor, cores, system and GPUs."""
    found: dict[str, Any] = {
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
    }
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        return found
    return found | {"gpus": answer.stdout.strip().splitlines()}


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of Python and of the installed packages among these."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _commit() -> str:
    command = ["git", "rev-parse", "HEAD"]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return answer.stdout.strip() or "unknown"
