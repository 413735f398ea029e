"""Draw the stages, what they read, and what is made: in the terminal, in Mermaid, or as SVG.

    python -m pipeline stage=graph
    python -m pipeline stage=graph graph.format=svg graph.to=graph.svg

The graph is dvc.yaml's. In the terminal, a lane leads from each artifact down to the last one that
is made from it. A line that joins a lane (┼, ├, ╰) reads it, one behind a lane (│) does not.
"""

from contextlib import suppress
from pathlib import Path

from pipeline.config.schema import Config
from pipeline.core.artifact import Manifest, read_manifest
from pipeline.core.console import get_console
from pipeline.core.errors import ArtifactError, ResourceError
from pipeline.core.paths import MANIFEST


def run(config: Config) -> None:
    """Print the drawing to standard output, or write it to graph.to.

    Raises:
        ConfigError: dvc.yaml cannot be read. ResourceError: the file cannot be written.
    """
    from pipeline.orchestration.audit import drawing
    from pipeline.orchestration.graph import read_graph

    graph = read_graph(config.model_dump(mode="json", by_alias=True))
    made = {name: _made(config.artifacts / name) for name in graph}
    boxes, edges, states = [], [], {}
    for name, node in graph.items():
        for file in node.files:
            box = drawing.Box(f"file {file}", str(file), kind="file")
            if box not in boxes:
                boxes.append(box)
            edges.append((box.id, name))
        manifest = made[name]
        states[name] = _state(manifest, made)
        note = manifest.kind.replace("_", " ") if manifest else "not made"
        kind = "stage" if manifest else "gone"
        boxes.append(drawing.Box(name, name, note, kind=kind, hint=states[name]))
        edges += [(source, name) for source in node.inputs]
    if config.graph.format == "svg":
        text = drawing.svg(boxes, edges, label="the stages", alone=True) + "\n"
    elif config.graph.format == "mermaid":
        text = drawing.mermaid(boxes, edges)
    else:
        wide = max(len(box.title) for box in boxes)
        picture = max(2 * len(boxes) - 1, 1)
        text = "".join(
            f"{box.title:<{wide}}  {line:<{picture}}  {states.get(box.id, '')}".rstrip() + "\n"
            for line, box in drawing.terminal_lines(boxes, edges)
        )
    if config.graph.to is None:
        print(text, end="")
    else:
        _write(config.graph.to, text)


def _made(folder: Path) -> Manifest | None:
    with suppress(ArtifactError):
        if (folder / MANIFEST).is_file():
            return read_manifest(folder, "")
    return None


def _state(manifest: Manifest | None, made: dict[str, Manifest | None]) -> str:
    """What is there of a stage, in words."""
    if manifest is None:
        return "not made yet"
    other = [
        name
        for name, digest in manifest.inputs.items()
        if (found := made.get(name)) is None or found.digest != digest
    ]
    kind, day = manifest.kind.replace("_", " "), manifest.created[:16].replace("T", " ")
    words = f"{kind}, {manifest.bytes / 2**20:,.1f} MiB, {day} UTC"
    if manifest.failure:
        words += ", refused by the gate"
    if other:
        words += f", made from another {' and '.join(other)}"
    return words


def _write(file: Path, text: str) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ResourceError(
            f"graph.to={file} cannot be written ({error.strerror}): name another file"
        ) from error
    get_console().print(f"The graph: {file}", soft_wrap=True, markup=False)
