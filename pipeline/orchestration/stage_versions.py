"""Declared versions of stages, and the versions of the libraries that they use, for DVC.

`versions.json` beside the stages records each stage's version, its libraries and the digest of its
code; tools/versions.py writes it and CI compares it with the code. DVC runs this module first: it
writes a small file for each stage, which changes with the stage's version or one of its libraries.
Each stage in dvc.yaml depends on its file. Imports nothing heavy: it runs every
time.
"""

import json
import os
import shutil
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pipeline.core.console import report
from pipeline.core.errors import EXIT_CODE_FILE, PipelineError, ResourceError
from pipeline.core.paths import PARAMS_FILE
from pipeline.orchestration.project import refuse_copy

RECORD = Path(__file__).parents[1] / "stages" / "versions.json"
FOLDER = "versions"  # below the artifacts


def recorded() -> dict[str, dict[str, Any]]:
    """Entries of versions.json: stages, and components such as "engine/vllm"."""
    try:
        found = json.loads(RECORD.read_bytes())
        if not all({"version", "libraries"} <= entry.keys() for entry in found.values()):
            raise ValueError("an entry has no version or libraries")
        return found
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        why = " ".join(str(error).split())[:160]
        raise PipelineError(
            f"{RECORD} cannot be read ({why}): install the pipeline again, or run "
            "`git checkout` on it"
        ) from error


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


def files_named(project: Path) -> dict[str, dict[str, Any]]:
    """By stage, size and time of the files that its settings name: dvc.yaml cannot list them."""
    from pydantic import ValidationError

    from pipeline.config.evaluate import EvaluateConfig
    from pipeline.config.retrieval import IndexConfig
    from pipeline.orchestration.graph import read_yaml

    try:
        tree = read_yaml((project / PARAMS_FILE).read_bytes())
        measures = _stamps(EvaluateConfig.model_validate(tree["evaluate"]).files())
        index = IndexConfig.model_validate(tree["index"])
    except (OSError, ValueError, KeyError, TypeError, ValidationError):
        return {}  # which the stage itself refuses
    named = (index.folder, index.embedding.path)
    documents = _stamps([path for path in named if path is not None])
    return {"evaluate": measures, "benchmark": measures, "index": documents}


def _stamps(named: Iterable[Path]) -> dict[str, Any]:
    found = {}
    for path in named:
        inside = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in (f for f in inside if f.is_file() and "__pycache__" not in f.parts):
            found[str(file)] = [file.stat().st_size, file.stat().st_mtime_ns]
    return found


def write(artifacts: Path, project: Path | None = None) -> None:
    """Write artifacts/versions/<stage>.json where it differs; unchanged files keep their time."""
    entries, named = recorded(), files_named(project or Path.cwd())
    folder = artifacts / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for stage in entries:
        if "/" in stage:
            continue
        found = current(stage, entries)
        if files := named.get(stage):
            found["files"] = files
        text = json.dumps(found, indent=1) + "\n"
        file = folder / f"{stage}.json"
        if not file.is_file() or file.read_bytes() != text.encode():
            if file.is_dir():
                shutil.rmtree(file)
            temporary = file.with_suffix(".tmp")
            temporary.write_text(text)
            temporary.replace(file)


def main(artifacts: Path) -> int:
    """Write the files, as the first stage of DVC's graph; the exit code."""
    try:
        refuse_copy(Path.cwd())
        write(artifacts)
    except PipelineError as error:
        report(f"{type(error).__name__}: {error}")
        code = error.exit_code
    except OSError as error:
        report(f"ResourceError: {artifacts} cannot be written ({error})")
        code = ResourceError.exit_code
    else:
        return 0
    if left := os.environ.get(EXIT_CODE_FILE):
        Path(left).write_text(str(code))
    return code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
