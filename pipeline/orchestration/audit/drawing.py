"""Draws a graph of boxes and arrows: as lines of a terminal, in Mermaid, and as SVG.

The layout is in layers, from the left to the right: each box is one layer behind the last of those
that it was made from. Texts are escaped here.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT, GAP_X, GAP_Y, EDGE = 148, 44, 46, 16, 8  # of a box, between boxes, around all
LETTER = 6.8  # pixels of a character, about
ROUNDS = 6  # of the ordering within layers


@dataclass(frozen=True)
class Box:
    """A thing. title, note: its two lines of text. href: where a click leads; "" nowhere. kind: a
    word for its look: stage, file, version or gone. hint: text that is shown when one points at it.
    """

    id: str
    title: str
    note: str = ""
    href: str = ""
    kind: str = "stage"
    hint: str = ""


Edges = Sequence[tuple[str, str]]  # pairs of ids: the second was made from the first


def terminal_lines(boxes: Sequence[Box], edges: Edges) -> list[tuple[str, Box]]:
    """A line of a picture for each box, in the order of the boxes, which is that of the arrows: a
    lane leads down from each box to the last one that was made from it.

    prepare   ●
    import    │ ●
    finetune  ├─┴─●
    """
    lane = {box.id: place for place, box in enumerate(boxes)}
    last = {box.id: lane[box.id] for box in boxes}
    inputs: dict[str, list[int]] = {box.id: [] for box in boxes}
    for source, target in edges:
        if source in lane and target in lane and lane[source] < lane[target]:
            last[source] = max(last[source], lane[target])
            inputs[target].append(lane[source])
    ends = [last[box.id] for box in boxes]
    lines = []
    for row, box in enumerate(boxes):
        used = sorted(inputs[box.id])
        cells = []
        for column in range(row + 1):
            passes = column < row and ends[column] > row
            right = bool(used) and used[0] < column  # a line comes from the left
            if column == row:
                mark = "●"
            elif column in used:
                mark = {(True, True): "┼", (True, False): "├", (False, True): "┴",
                        (False, False): "╰"}[(passes, right)]  # fmt: skip
            elif passes:
                mark = "│"  # a line from the left goes behind it
            else:
                mark = "─" if right else " "
            cells.append(mark)
            if column < row:
                cells.append("─" if used and used[0] <= column else " ")
        lines.append(("".join(cells), box))
    return lines


def mermaid(boxes: Sequence[Box], edges: Edges) -> str:
    """The graph in Mermaid, as code hosts draw it."""
    names = {box.id: f"n{number}" for number, box in enumerate(boxes)}
    shapes = {"file": ('[("', '")]'), "version": ('(["', '"])'), "gone": ('>"', '"]')}
    lines = ["flowchart LR"]
    for box in boxes:
        left, right = shapes.get(box.kind, ('["', '"]'))
        text = "<br/>".join(_in_mermaid(part) for part in (box.title, box.note) if part)
        lines.append(f"  {names[box.id]}{left}{text}{right}")
    for source, target in edges:
        if source in names and target in names:
            lines.append(f"  {names[source]} --> {names[target]}")
    return "\n".join(lines) + "\n"


def _in_mermaid(text: str) -> str:
    return re.sub(r"[^\w ./:,()+-]", lambda found: f"#{ord(found[0])};", text)


def svg(boxes: Sequence[Box], edges: Edges, *, label: str, alone: bool = False) -> str:
    """The graph as SVG. label: what it shows, for those who do not see it. alone: it is a file of
    its own, and needs its colours; a page has them already (core/html_page.py)."""
    known = {box.id for box in boxes}
    edges = list(dict.fromkeys(e for e in edges if e[0] in known and e[1] in known))
    layers = _layers(boxes, edges)
    place = _places(layers)
    wide = 2 * EDGE + len(layers) * WIDTH + max(0, len(layers) - 1) * GAP_X
    most = max((len(layer) for layer in layers), default=0)
    high = 2 * EDGE + most * HEIGHT + max(0, most - 1) * GAP_Y
    arrows = "".join(_arrow(place[source], place[target]) for source, target in edges)
    drawn = "".join(_drawn(box, *place[box.id]) for box in boxes)
    head = 'xmlns="http://www.w3.org/2000/svg" ' if alone else 'class="long" '
    return (
        f'<svg {head}viewBox="0 0 {wide} {high}" width="{wide}" role="img" '
        f'aria-label="{escape(label)}" font-family="system-ui,sans-serif" font-size="12">'
        f"{_COLOURS if alone else ''}"
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" fill="var(--grey)"/></marker>'
        "</defs>"
        f"{arrows}{drawn}</svg>"
    )


_COLOURS = (
    "<style>:root{--ink:#1f2328;--dim:#59636e;--card:#f6f8fa;--line:#d1d9e0;--bar:#76b900;"
    "--grey:#9aa0a6}@media(prefers-color-scheme:dark){:root{--ink:#e6edf3;--dim:#9198a1;"
    "--card:#161b22;--line:#30363d}}</style>"
)


def _layers(boxes: Sequence[Box], edges: Edges) -> list[list[str]]:
    """Ids by layer, ordered so that few arrows cross."""
    before: dict[str, list[str]] = {box.id: [] for box in boxes}
    after: dict[str, list[str]] = {box.id: [] for box in boxes}
    for source, target in edges:
        before[target].append(source)
        after[source].append(target)
    depth: dict[str, int] = {}

    def deep(node: str, above: frozenset[str]) -> int:
        if node not in depth:
            inner = [deep(b, above | {node}) for b in before[node] if b not in above]
            depth[node] = 1 + max(inner, default=-1)
        return depth[node]

    for box in boxes:
        deep(box.id, frozenset())
    # A source stands just before its first user, not at the far left.
    for box in boxes:
        if not before[box.id] and after[box.id]:
            depth[box.id] = max(0, min(depth[user] for user in after[box.id]) - 1)
    layers: list[list[str]] = [[] for _ in range(max(depth.values(), default=-1) + 1)]
    for box in boxes:
        layers[depth[box.id]].append(box.id)
    for turn in range(ROUNDS):
        links = before if turn % 2 == 0 else after
        rank = {node: n / max(1, len(layer)) for layer in layers for n, node in enumerate(layer)}
        for layer in layers if turn % 2 == 0 else reversed(layers):
            layer.sort(key=lambda node: _middle(links[node], rank, rank[node]))
            rank |= {node: n / max(1, len(layer)) for n, node in enumerate(layer)}
    return [layer for layer in layers if layer]


def _middle(nodes: Iterable[str], rank: Mapping[str, float], otherwise: float) -> float:
    ranks = [rank[node] for node in nodes]
    return sum(ranks) / len(ranks) if ranks else otherwise


def _places(layers: Sequence[Sequence[str]]) -> dict[str, tuple[float, float]]:
    """The upper left corner of each box."""
    most = max((len(layer) for layer in layers), default=0)
    place: dict[str, tuple[float, float]] = {}
    for column, layer in enumerate(layers):
        above = (most - len(layer)) * (HEIGHT + GAP_Y) / 2
        for row, node in enumerate(layer):
            x = EDGE + column * (WIDTH + GAP_X)
            place[node] = (x, EDGE + above + row * (HEIGHT + GAP_Y))
    return place


def _arrow(source: tuple[float, float], target: tuple[float, float]) -> str:
    x, y = source[0] + WIDTH, source[1] + HEIGHT / 2
    to_x, to_y = target[0], target[1] + HEIGHT / 2
    bend = max(GAP_X / 2, (to_x - x) / 2)
    return (
        f'<path d="M{x:.0f} {y:.0f}C{x + bend:.0f} {y:.0f} {to_x - bend:.0f} {to_y:.0f} '
        f'{to_x:.0f} {to_y:.0f}" fill="none" stroke="var(--grey)" marker-end="url(#arrow)"/>'
    )


def _drawn(box: Box, x: float, y: float) -> str:
    look = {"version": "var(--bar)", "file": "var(--grey)"}.get(box.kind, "var(--line)")
    dashes = ' stroke-dasharray="4"' if box.kind == "gone" else ""
    lines = [(box.title, "var(--ink)", "600"), (box.note, "var(--dim)", "400")]
    shown = [line for line in lines if line[0]]
    texts = ""
    for number, (text, colour, weight) in enumerate(shown):
        at = y + HEIGHT / 2 + 4 + (number - (len(shown) - 1) / 2) * 16
        texts += (
            f'<text x="{x + 10:.0f}" y="{at:.0f}" fill="{colour}" font-weight="{weight}">'
            f"{escape(_fitting(text))}</text>"
        )
    hint = f"<title>{escape(box.hint)}</title>" if box.hint else ""
    drawn = (
        f'<g>{hint}<rect x="{x:.0f}" y="{y:.0f}" width="{WIDTH}" height="{HEIGHT}" rx="6" '
        f'fill="var(--card)" stroke="{look}"{dashes}/>{texts}</g>'
    )
    return f'<a href="{escape(box.href)}">{drawn}</a>' if box.href else drawn


def _fitting(text: str) -> str:
    most = int((WIDTH - 16) / LETTER)
    return text if len(text) <= most else f"{text[: most - 1]}…"
