"""Declared versions of stages, and the versions of the libraries that they use, for DVC.

`versions.json` beside the stages records each stage's version, its libraries and the digest of its
code; tools/versions.py writes it and CI compares it with the code. DVC runs this module first: it
writes a small file for each stage, which changes with the stage's version or one of its libraries.
Each stage in dvc.yaml depends on its file. Imports only the standard library: it runs every time.
"""

import json
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RECORD = Path(__file__).parents[1] / "stages" / "versions.json"
FOLDER = "versions"  # below the artifacts


def recorded() -> dict[str, dict[str, Any]]:
    """Entries of versions.json: stages, and components such as "engine/vllm"."""
    return json.loads(RECORD.read_text())


def components_of(stage: str, entries: Mapping[str, Any]) -> list[str]:
    """Names of the components that settings can choose for a stage."""
    return [name for name in entries if stage == "build" and name.startswith("engine/")]


def current(stage: str, entries: Mapping[str, Any]) -> dict[str, Any]:
    """Versions of a stage, of all its components, and of the installed libraries that they use."""
    names = [stage, *components_of(stage, entries)]
    libraries = {lib for name in names for lib in entries[name]["libraries"]}
    installed = {lib: _version(lib) for lib in sorted(libraries)}
    return {
        "versions": {name: entries[name]["version"] for name in names},
        "libraries": {lib: found for lib, found in installed.items() if found},
    }


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def write(artifacts: Path) -> None:
    """Write artifacts/versions/<stage>.json where it differs; unchanged files keep their time."""
    entries = recorded()
    folder = artifacts / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for stage in entries:
        if "/" in stage:
            continue
        text = json.dumps(current(stage, entries), indent=1) + "\n"
        file = folder / f"{stage}.json"
        if not file.is_file() or file.read_text() != text:
            temporary = file.with_suffix(".tmp")
            temporary.write_text(text)
            temporary.replace(file)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
