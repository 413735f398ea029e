"""Write into dvc.yaml and pretrain.yaml which code makes each stage's artifact: `make watch`.

A stage depends on its own file and on all that it imports of the project, directly or through
others, except on the foundation: a change there is one of the pipeline, not of one result. The
checks of `preflight` refuse a run, and never change what one makes.
"""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DECLARATIONS = ("dvc.yaml", "pipeline/stages/pretrain.yaml")
FOUNDATION = (
    "__init__ artifact config console errors graph hardware preflight runner spool summary tracking"
).split()


def code_of_stage(stage: str) -> list[str]:
    """The files below pipeline/ that a stage's result depends on, as the files name them."""
    name = "import_" if stage == "import" else stage
    files = _follow(ROOT / "pipeline" / "stages" / f"{name}.py", set())
    return sorted(str(f.relative_to(ROOT)) for f in files)


def _follow(file: Path, seen: set[Path]) -> set[Path]:
    if file in seen:
        return seen
    seen.add(file)
    for node in ast.walk(ast.parse(file.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{a.name}" for a in node.names)]
        for name in names:
            path = ROOT / (name.replace(".", "/") + ".py")
            if name.startswith("pipeline.") and path.is_file() and path.stem not in FOUNDATION:
                _follow(path, seen)
    return seen


def main() -> None:
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.width = 120
    yaml.indent(mapping=2, sequence=4, offset=2)
    for file in DECLARATIONS:
        graph = yaml.load((ROOT / file).read_text())
        for stage, entry in graph["stages"].items():
            others = [d for d in entry["deps"] if not d.startswith("pipeline/")]
            entry["deps"].clear()
            entry["deps"].extend(others + code_of_stage(stage))
        with (ROOT / file).open("w") as stream:
            yaml.dump(graph, stream)


if __name__ == "__main__":
    main()
