"""Write docs/patches.md from the records of replaced library code, and compare them with what is
installed: `make patches`.

Each record (pipeline/core/monkeypatch.py) has a digest of the library's code that it was written
for. The source is read, not imported, so this takes a second and needs no GPU.
"""

import ast
import hashlib
import importlib
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pipeline.core.hardware import installed_version  # noqa: E402
from pipeline.core.monkeypatch import Patch  # noqa: E402

PAGE = ROOT / "docs/patches.md"
DIGITS = 16
_HEAD = """# Patches on library code

Written by `make patches` from the records in `pipeline/`; do not edit.

`finetune.patches=none` trains without the patches that are not required. Use it to find out whether
a fault is in a library or in a patch, and what a patch gains. Speed, memory and results may then
differ, and the faults below are in force.

A test compares the digest in each record with the installed library (`tests/unit/test_patches.py`,
and for Transformer Engine `tests/gpu/test_patches.py`). Training warns before it begins when a
library has another version than its patches.

"""


def patches() -> dict[str, Patch]:
    """Every record in the package, by the name of its constant, in the order of modules."""
    found: dict[str, Patch] = {}
    for file in sorted((ROOT / "pipeline").rglob("*.py")):
        if not _declares_patch(file):
            continue
        module = importlib.import_module(".".join(file.relative_to(ROOT).with_suffix("").parts))
        found |= {name: value for name, value in vars(module).items() if isinstance(value, Patch)}
    return found


def _declares_patch(file: Path) -> bool:
    """Whether a module assigns a `Patch(...)` to a name."""
    return any(
        isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Call)
        and isinstance(node.value.func, ast.Name)
        and node.value.func.id == "Patch"
        for node in ast.parse(file.read_text()).body
    )


def digest(patch: Patch) -> str:
    """Of the installed source that a patch relies on.

    Raises:
        LookupError: a name is not in the library any more; says which.
    """
    text = "\n".join(source(name) for name in patch.sources)
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]


def fault(name: str, patch: Patch) -> str:
    """Why a patch does not fit the installed library; "" if it does."""
    try:
        found = digest(patch)
    except LookupError as error:
        return f"{name}: {error}"
    if found == patch.digest:
        return ""
    return (
        f"{name}: the code of {patch.distribution} {installed_version(patch.distribution)} in "
        f"{', '.join(patch.sources)} is not that of {patch.version}. Read it, correct the "
        f"replacement, then record the version and the digest {found!r}"
    )


def source(name: str) -> str:
    """The source of "package.module:Class.function": every statement that binds the last name.

    Raises:
        LookupError: there is none.
    """
    module, _, path = name.partition(":")
    file = _file(module)
    statements, found = _parsed(file).body, list[ast.stmt]()
    for part in path.split("."):
        found = [node for node in _statements(statements) if part in _bound(node)]
        statements = [inner for node in found for inner in getattr(node, "body", [])]
    if not found:
        raise LookupError(f"{file} has no {path}: find what took its place")
    lines = file.read_text().splitlines()
    return "\n".join(
        line for node in found for line in lines[_first_line(node) - 1 : node.end_lineno]
    )


@cache
def _parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


def _file(module: str) -> Path:
    """A module's source, or the stub of a compiled one."""
    path = module.replace(".", "/")
    for folder in sys.path:
        for ending in (".py", "/__init__.py", ".pyi", "/__init__.pyi"):
            if (file := Path(folder) / (path + ending)).is_file():
                return file
    raise LookupError(f"there is no module {module}: install it, or find what took its place")


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Those of a module or class, and of its if, try and with blocks."""
    for node in body:
        yield node
        if isinstance(node, ast.If | ast.Try | ast.With):
            yield from _statements(node.body)
            yield from _statements(getattr(node, "orelse", []))
            for handler in getattr(node, "handlers", []):
                yield from _statements(handler.body)


def _bound(node: ast.stmt) -> set[str]:
    """Names that a statement binds."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.Import | ast.ImportFrom):
        return {alias.asname or alias.name for alias in node.names}
    if isinstance(node, ast.Assign):
        return {
            n.id for target in node.targets for n in ast.walk(target) if isinstance(n, ast.Name)
        }
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return {node.target.id}
    return set()


def _first_line(node: ast.stmt) -> int:
    return min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])


def page() -> str:
    """docs/patches.md as the records have it."""
    found = patches().values()
    parts = [_HEAD]
    for title, chosen in (
        ("Always in force", [p for p in found if p.required]),
        ("Switched off by `finetune.patches=none`", [p for p in found if not p.required]),
    ):
        if title.startswith("Always"):
            head = "| replaces | in | on | why | required because |\n|---|---|---|---|---|\n"
        else:
            head = "| replaces | in | on | why |\n|---|---|---|---|\n"
        parts.append(f"## {title}\n\n{head}" + "".join(_row(p) for p in chosen) + "\n")
    return "".join(parts).rstrip() + "\n"


def _row(patch: Patch) -> str:
    module, _, path = patch.owner.partition(":")
    names = [f"{path}.{name}" if path else name for name in patch.names]
    shown = ", ".join(f"`{name}`" for name in names)
    where = {"all": "every machine"}.get(patch.where, patch.where)
    link = f" ([upstream]({patch.link}))" if patch.link else ""
    cells = [f"`{module}`: {shown}", f"{patch.distribution} {patch.version}", where]
    cells.append(patch.reason + link)
    if patch.required:
        cells.append(patch.required)
    return f"| {' | '.join(cells)} |\n"


def main() -> None:
    PAGE.write_text(page())
    print(f"written: {PAGE.relative_to(ROOT)}")
    found = {
        name: patch for name, patch in patches().items() if installed_version(patch.distribution)
    }
    faults = [text for name, patch in found.items() if (text := fault(name, patch))]
    print("\n".join(faults) or f"{len(found)} records fit what is installed")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
