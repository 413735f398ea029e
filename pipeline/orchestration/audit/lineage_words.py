"""The lineage for people, as tables, and for programs, as JSON."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.core.console import output_console
from pipeline.orchestration.audit.lineage import SHOWN, Lineage, Node

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

GONE = "not here any more"


def as_json(lineage: Lineage, wanted: str | None) -> dict[str, Any]:
    """nodes: what was asked for, and everything before and after it. edges: pairs of ids; the
    second was made from the first. of, came_from, made_from_it: ids, in the order in which they
    were made.

    Raises:
        ConfigError, ArtifactError: as Lineage.find() does.
    """
    if wanted is None:
        of: Sequence[Node] = ()
        before: Sequence[Node] = ()
        after: Sequence[Node] = ()
        nodes = lineage.all()
    else:
        trace = lineage.trace(wanted)
        of, before, after = trace.of, trace.before, trace.after
        nodes = sorted([*before, *of, *after], key=lambda node: lineage.order[node.id])
    here = {node.id for node in nodes}
    return {
        "schema": 1,
        "of": [node.id for node in of],
        "came_from": [node.id for node in before],
        "made_from_it": [node.id for node in after],
        "nodes": [
            {
                "id": node.id,
                "kind": node.kind,
                "name": node.name,
                "digest": node.digest,
                "places": list(node.places),
                "facts": dict(node.facts),
            }
            for node in nodes
        ],
        "edges": [
            [source, node.id]
            for node in nodes
            for source in lineage.sources[node.id]
            if source in here
        ],
    }


def show(lineage: Lineage, wanted: str | None) -> None:
    """Print tables to standard output.

    Raises:
        ConfigError, ArtifactError: as Lineage.find() does.
    """
    console = wide_console()
    if wanted is None:
        parts: list[tuple[str, Sequence[Node]]] = [("everything that is here", lineage.all())]
    else:
        trace = lineage.trace(wanted)
        for node in trace.of:
            console.print(_described(node), markup=False)
        parts = [("came from", trace.before), ("made from it", trace.after)]
    for title, nodes in parts:
        console.print(f"\n{title}", style="bold")
        console.print(_table(lineage, nodes) if nodes else "  nothing")


def wide_console() -> "Console":
    """Standard output, whose lines are not cut where nobody sees them at once."""
    console = output_console()
    console.soft_wrap = True
    if not console.is_terminal:
        console.width = 200
    return console


def _described(node: Node) -> str:
    """One line about what was asked for."""
    facts = node.facts
    parts = [str(facts[name]).replace("_", " ") for name in ("kind",) if name in facts]
    parts.append(where(node))
    if made := str(facts.get("made", "")):
        parts.append(f"made {made[:16].replace('T', ' ')} UTC")
    if commit := str(facts.get("commit", "")):
        parts.append(f"by commit {commit[:SHOWN]}")
    if failure := facts.get("failure"):
        parts.append(f"refused by the gate: {failure}")
    return f"{node.title}: {', '.join(parts)}"


def _table(lineage: Lineage, nodes: Iterable[Node]) -> "Table":
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for heading in ("  what", "digest", "where", "made from"):
        table.add_column(heading, no_wrap=heading != "made from", overflow="fold")
    for node in nodes:
        sources = [lineage.nodes[source] for source in lineage.sources[node.id]]
        cells = (f"  {node.name}", node.digest[:SHOWN], where(node), _sources(sources))
        table.add_row(*map(escape, cells))
    return table


def _sources(nodes: Sequence[Node]) -> str:
    """Names; of files, those alone."""
    return ", ".join(dict.fromkeys(node.name for node in nodes))


def where(node: Node) -> str:
    """Where a thing is, in words."""
    if node.kind == "version":
        store = str(node.facts.get("store", ""))
        return f"registry of {node.facts['model']}" + (f", files in {store}" if store else "")
    if not node.places:
        return GONE
    more = len(node.places) - 1
    return node.places[0] + (f" and {more} more" if more else "")
