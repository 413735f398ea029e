"""Rendered conversations to look at: what the model reads, with the trained tokens in colour."""

from collections import Counter
from collections.abc import Iterator, Sequence
from html import escape
from itertools import groupby
from typing import TYPE_CHECKING

from pipeline.core.console import printable
from pipeline.data.dataset import Row
from pipeline.models.chat.renderer import Chat

if TYPE_CHECKING:
    from rich.console import RenderableType

_PAGE = """<!doctype html>
<meta charset="utf-8"><title>Samples of the dataset</title>
<style>
  body {{ font: 16px/1.5 sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }}
  pre {{ white-space: pre-wrap; background: #f6f7f9; color: #57606a; padding: 1rem }}
  mark {{ background: #b7ebc0; color: #0b3d16 }}
  mark.worse {{ background: #f6c9c9; color: #5a1010 }}
  rect {{ fill: #4a7fb5 }} text {{ font-size: 11px }}
</style>
<h1>Samples of the dataset</h1>
<p>What the model reads, control tokens included.
It is trained on the <mark>marked</mark> text.{worse}</p>
{samples}
<h2>Tokens per row</h2>
{histogram}
"""


_WORSE = ' It learns to avoid the text that is <mark class="worse">marked so</mark>.'


def runs(chat: Chat, ids: Sequence[int], mask: Sequence[int]) -> Iterator[tuple[str, bool]]:
    """The rendered text in pieces, each with whether the model is trained on it."""
    pairs = zip(ids, mask, strict=True)
    for trained, run in groupby(pairs, key=lambda pair: pair[1]):
        yield chat.decode([token for token, _ in run], control_tokens=True), bool(trained)


def panels(chat: Chat, rows: Sequence[Row]) -> "Iterator[RenderableType]":
    """The rows for the terminal, with the trained tokens coloured."""
    from rich.panel import Panel
    from rich.text import Text

    for row in rows:
        for name, avoided, ids, mask in sides(row):
            text = Text()
            style = "black on red" if avoided else "black on green"
            for piece, trained in runs(chat, ids, mask):
                text.append(printable(piece), style=style if trained else "dim")
            trained_tokens = f"trained on {sum(mask)} of {len(mask)} tokens"
            yield Panel(
                text, title=Text(printable(name)), subtitle=trained_tokens, title_align="left"
            )


def sides(row: Row) -> Iterator[tuple[str, bool, list[int], list[int]]]:
    """Each conversation of a row: its title, whether the model learns to avoid its answer, its ids
    and its loss mask."""
    if row.kind == "pairs":
        for word, (ids, mask) in zip(("chosen", "rejected"), row.sides, strict=True):
            yield f"{row.source} ({word})", word == "rejected", ids, mask
        return
    words = {None: "", 1: " (desirable)", 0: " (undesirable)"}
    yield row.source + words[row.label], row.label == 0, row.input_ids, row.loss_mask


def histogram(lengths: Sequence[int]) -> list[tuple[int, int, int]]:
    """About 20 equal bins of row lengths: first length, last length, rows."""
    width = max(8, -(-max(lengths, default=0) // 20))
    bins = Counter(length // width for length in lengths)
    return [(i * width, (i + 1) * width - 1, bins[i]) for i in range(max(bins, default=-1) + 1)]


def page(chat: Chat, rows: Sequence[Row], bins: Sequence[tuple[int, int, int]]) -> str:
    """An HTML page with the rows and the bins of `histogram`."""
    parts = []
    for row in rows:
        for name, avoided, ids, mask in sides(row):
            mark = '<mark class="worse">' if avoided else "<mark>"
            marked = (
                f"{mark}{escape(piece)}</mark>" if trained else escape(piece)
                for piece, trained in runs(chat, ids, mask)
            )
            parts.append(f"<h2>{escape(name)}</h2>\n<pre>{''.join(marked)}</pre>")
    worse = _WORSE if any(row.kind != "answers" for row in rows) else ""
    return _PAGE.format(samples="\n".join(parts), histogram=_draw(bins), worse=worse)


def _draw(bins: Sequence[tuple[int, int, int]]) -> str:
    bar, height = 36, 160
    most = max((count for *_, count in bins), default=1)
    parts = []
    for i, (first, last, count) in enumerate(bins):
        tall, left = round(height * count / most), i * bar
        middle = left + bar // 2
        parts.append(
            f'<rect x="{left + 2}" y="{height + 16 - tall}" width="{bar - 4}" height="{tall}">'
            f"<title>{first} to {last} tokens: {count} rows</title></rect>"
            f'<text x="{middle}" y="{height + 12 - tall}" text-anchor="middle">{count}</text>'
            f'<text x="{middle}" y="{height + 30}" text-anchor="middle">{first}</text>'
        )
    size = f'width="{len(bins) * bar}" height="{height + 36}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{"".join(parts)}</svg>'
