"""The order of the rooms: a module imports from its own room and from those below."""

import ast
from pathlib import Path

from pipeline.core.paths import ROOT

PACKAGE = ROOT / "pipeline"
# From the ground up. docs/ARCHITECTURE.md says what each is for.
ROOMS = (
    "core config client tracking models data training optimization evaluation engines planner "
    "retrieval serving deployment orchestration stages __main__"
).split()
MOST_FOLDERS, MOST_FILES, MOST_FILES_IN_A_ROOM = 16, 3, 20
MOST_STAGES = 28  # the command line's verbs, each a file of its name


def modules() -> dict[str, Path]:
    found = {}
    for file in PACKAGE.rglob("*.py"):
        parts = file.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts).removesuffix(".__init__")] = file
    return found


def imports(file: Path, known: dict[str, Path]) -> set[str]:
    """Modules of the pipeline that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{a.name}" for a in node.names]
            found |= {name if name in known else node.module for name in names}
    return found & known.keys()


def graph() -> dict[str, set[str]]:
    known = modules()
    return {name: imports(file, known) - {name} for name, file in known.items()}


def room(module: str) -> str | None:
    """None: the package itself, which only announces where modules were moved to."""
    return module.split(".")[1] if "." in module else None


def test_every_folder_is_a_room_and_there_are_few() -> None:
    folders = {p.name for p in PACKAGE.iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert folders == set(ROOMS) - {"__main__"}
    assert len(folders) <= MOST_FOLDERS
    assert len(list(PACKAGE.glob("*.py"))) <= MOST_FILES


def test_no_folder_is_crowded() -> None:
    for folder in (p for p in PACKAGE.rglob("*") if p.is_dir() and p.name != "__pycache__"):
        files = [f.name for f in folder.glob("*.py") if f.name != "__init__.py"]
        most = MOST_STAGES if folder == PACKAGE / "stages" else MOST_FILES_IN_A_ROOM
        assert len(files) <= most, folder


def test_no_import_points_upwards() -> None:
    upwards = [
        f"{module} imports {other}"
        for module, others in graph().items()
        for other in others
        if (here := room(module)) and (there := room(other))
        if ROOMS.index(there) > ROOMS.index(here)
    ]
    assert not upwards


def test_no_modules_import_one_another_in_a_circle() -> None:
    """Tarjan's strongly connected components would name them all; one path is enough to mend."""
    links, done = graph(), set[str]()

    def follow(module: str, path: list[str]) -> None:
        if module in path:
            raise AssertionError(" imports ".join([*path[path.index(module) :], module]))
        if module not in done:
            for other in sorted(links[module]):
                follow(other, [*path, module])
            done.add(module)

    for module in sorted(links):
        follow(module, [])


def test_every_unit_test_mirrors_a_room() -> None:
    here = Path(__file__).parent
    others = {"bench", "deploy", "tools", "__pycache__"}
    assert {p.name for p in here.iterdir() if p.is_dir()} - others <= set(ROOMS)
