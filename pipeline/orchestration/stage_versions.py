"""What DVC cannot see by itself: versions of stages and libraries, and what the base model is.

`versions.json` beside the stages records each stage's version, its libraries and the digest of its
code; tools/versions.py writes it and CI compares it with the code. DVC runs this module first: it
writes a small file for each stage, which changes with the stage's version or one of its libraries.
Each stage in dvc.yaml depends on its file. model.json says what `model.path` is, of which
`dvc exp run -S` may have made a source that no path of DVC's can name. Imports nothing heavy: it
runs every time.
"""

import json
import os
import shutil
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pipeline.core.console import report
from pipeline.core.errors import EXIT_CODE_FILE, DataError, PipelineError, ResourceError
from pipeline.core.paths import PARAMS_FILE
from pipeline.models.sources.address import not_a_folder
from pipeline.models.sources.fetching import comes_from_elsewhere, local_folder, provenance
from pipeline.orchestration.graph import MODEL_FILE, read_yaml
from pipeline.orchestration.project import refuse_copy

RECORD = Path(__file__).parents[1] / "stages" / "versions.json"
FOLDER = "versions"  # below the artifacts
READ_MEASURES = ("evaluate", "benchmark")  # stages that read the files that evaluate.* names


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


def _params(project: Path) -> Any:
    """The composed configuration; None where it cannot be read, which the stages refuse."""
    import yaml

    try:
        return read_yaml((project / PARAMS_FILE).read_bytes())
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return None


def measures_named(tree: Any) -> dict[str, Any]:
    """Size and time of the files that evaluate's settings name: dvc.yaml cannot list them."""
    from pydantic import ValidationError

    from pipeline.config.evaluate import EvaluateConfig

    try:
        named = EvaluateConfig.model_validate(tree["evaluate"]).files()
    except (ValueError, KeyError, TypeError, ValidationError):
        return {}  # which the stage itself refuses
    return {name: facts for path in named for name, facts in _files(path).items()}


def documents_named(tree: Any) -> dict[str, Any]:
    """The same of the documents and the embedding model that index's settings name."""
    from pydantic import ValidationError

    from pipeline.config.retrieval import IndexConfig

    try:
        index = IndexConfig.model_validate(tree["index"])
    except (ValueError, KeyError, TypeError, ValidationError):
        return {}  # which the stage itself refuses
    named = (index.folder, index.embedding.path)
    paths = [path for path in named if path is not None]
    return {name: facts for path in paths for name, facts in _files(path).items()}


def _files(path: Path) -> dict[str, list[int]]:
    """Size and time of a file, or of each file below a folder."""
    inside = sorted(path.rglob("*")) if path.is_dir() else [path]
    found = (file for file in inside if file.is_file() and "__pycache__" not in file.parts)
    return {str(file): [file.stat().st_size, file.stat().st_mtime_ns] for file in found}


def base_model(tree: Any, artifacts: Path) -> dict[str, Any]:
    """What the base model is: a source and its revision, or a folder's files, by size and time.

    The revision of a source that is new to the project is resolved and recorded.

    Raises:
        ConfigError, DataError: the source is written otherwise or cannot be reached, or there is no
            such folder.
    """
    try:
        path = tree["model"]["path"]
    except (KeyError, TypeError):
        return {}  # which the stages refuse
    if not isinstance(path, str):
        return {}
    if comes_from_elsewhere(path):
        folder = Path(local_folder(path, artifacts))
        if fetched := provenance(folder, artifacts):
            # Not its files: they arrive one after another, and the revision says what they are.
            return {key: fetched[key] for key in ("source", "revision")}
        path = str(folder)
    folder = Path(path)
    if not folder.exists():
        hub = not_a_folder(folder)
        instead = f", or {hub}" if hub else ""
        raise DataError(f"model.path={path} does not exist: correct the setting{instead}")
    return {"files": _files(folder)}


def write(artifacts: Path, project: Path | None = None) -> None:
    """Write artifacts/versions/<stage>.json where it differs; unchanged files keep their time.

    Raises:
        ConfigError, DataError: the base model cannot be had.
    """
    entries, tree = recorded(), _params(project or Path.cwd())
    measures, model = measures_named(tree), base_model(tree, artifacts)
    named = dict.fromkeys(READ_MEASURES, measures) | {"index": documents_named(tree)}
    folder = artifacts / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / MODEL_FILE, model)
    for stage in entries:
        if "/" in stage:
            continue
        found = current(stage, entries)
        if files := named.get(stage):
            found["files"] = files
        _write(folder / f"{stage}.json", found)


def _write(file: Path, found: Mapping[str, Any]) -> None:
    text = json.dumps(found, indent=1) + "\n"
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
