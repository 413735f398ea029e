"""Record the version of each stage beside the digest of its code: `make versions`.

The fingerprint of an artifact has the declared version of its stage, not the digest of its code,
because a new comment must not retrain a model. So whenever code changes, a person decides whether
results change. CI compares pipeline/stages/versions.json with the code and fails until this runs:

    make versions                     the results are the same: record the new code
    make versions NEW="finetune ..."  they differ: raise the version of these stages or engines too

A stage's code is its file and all modules of the project that it imports, directly or indirectly.
Modules that cannot change a result are left out: the command line, tracking, the planner, messages.
"""

import argparse
import ast
import hashlib
import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pipeline.core.stage import Component, Stage, stage_module  # noqa: E402
from pipeline.orchestration.graph import read_graph  # noqa: E402
from pipeline.orchestration.stage_versions import RECORD, recorded  # noqa: E402

# Rooms and modules that run, check or report a stage without affecting its result.
NO_RESULT = (
    "pipeline.core", "pipeline.config", "pipeline.tracking", "pipeline.planner",
    "pipeline.deployment", "pipeline.orchestration", "pipeline.training.progress",
    "pipeline.data.samples",
)  # fmt: skip


def components() -> list[Component]:
    from pipeline.stages.build import ENGINES

    return list(ENGINES.values())


def stage_names() -> list[str]:
    from pipeline.orchestration.compose import compose

    return list(read_graph(compose([])))


def code_of(modules: Iterable[str], *, without: Iterable[str] = ()) -> list[Path]:
    """The files of these modules and of their imports, including imports inside functions.

    without: modules to leave out, because they are recorded separately.
    """
    seen: set[Path] = set()
    for module in modules:
        _follow(module, seen, frozenset(without))
    return sorted(seen)


def _follow(module: str, seen: set[Path], without: frozenset[str]) -> None:
    file = _file(module)
    if file is None or file in seen:
        return
    seen.add(file)
    for node in ast.walk(ast.parse(file.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{a.name}" for a in node.names)]
        for name in names:
            if name.startswith("pipeline.") and name not in without and not _no_result(name):
                _follow(name, seen, without)


def _file(module: str) -> Path | None:
    path = ROOT / module.replace(".", "/")
    candidates = (path.with_suffix(".py"), path / "__init__.py")
    return next((file for file in candidates if file.is_file()), None)


def _no_result(module: str) -> bool:
    return any(module == room or module.startswith(f"{room}.") for room in NO_RESULT)


def digest(files: Iterable[Path]) -> str:
    """Digest of names and bytes. Comments count: only a person can judge a change."""
    content = hashlib.sha256()
    for file in files:
        content.update(f"{file.relative_to(ROOT)}\n{len(file.read_bytes())}\n".encode())
        content.update(file.read_bytes())
    return content.hexdigest()


def as_recorded() -> dict[str, dict[str, object]]:
    """The content of versions.json for the current code."""
    parts = components()
    own = {module for part in parts for module in part.modules}
    entries: dict[str, dict[str, object]] = {}
    for name in stage_names():
        module = stage_module(name)
        stage: Stage = module.STAGE
        entries[name] = {
            "version": stage.version,
            "libraries": [*stage.libraries, *stage.optional_libraries],
            "required": list(stage.libraries),
            "code": digest(code_of([module.__name__], without=own)),
        }
    shared = set(code_of([stage_module("build").__name__], without=own))
    for part in parts:
        files = [file for file in code_of(part.modules) if file not in shared]
        entries[part.name] = {
            "version": part.version,
            "libraries": list(part.libraries),
            "required": list(part.libraries),
            "code": digest(files),
        }
    return entries


def raise_version(name: str) -> None:
    """Increase the version in a stage's file, or in an engine's record, by one."""
    if "/" in name:
        file, pattern = _declaring_file(name), rf'(name="{name}", version=)(\d+)'
    else:
        file = Path(stage_module(name).__file__ or "")
        pattern = r"(STAGE = Stage\(\s*version=)(\d+)"
    text, count = re.subn(pattern, lambda m: f"{m[1]}{int(m[2]) + 1}", file.read_text())
    if count != 1:
        raise SystemExit(f"{file} does not declare the version of {name} in the expected form")
    file.write_text(text)


def _declaring_file(name: str) -> Path:
    files = [f for f in (ROOT / "pipeline").rglob("*.py") if f'name="{name}"' in f.read_text()]
    if len(files) != 1:
        raise SystemExit(f"{name} is not a stage or engine: choose from {', '.join(recorded())}")
    return files[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--new", nargs="*", default=[], help="stages whose results change")
    names = parser.parse_args().new
    if names:
        for name in names:
            raise_version(name)
        # This process has imported the stages with their old versions.
        import os

        os.execv(sys.executable, [sys.executable, __file__])
    RECORD.write_text(json.dumps(as_recorded(), indent=1) + "\n")
    print(f"recorded in {RECORD.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
