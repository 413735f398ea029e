"""What stage=inspect found, for the terminal."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.core.console import output_console, printable
from pipeline.data import samples
from pipeline.data.dataset import Row
from pipeline.data.inspection.profile import COMPARED
from pipeline.models.chat.renderer import Chat

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

WIDE = 24  # characters of the longest bar
MOST_BARS = 20
SHOWN = 3  # examples of a finding, and tokens that the model cannot say


def show(found: Mapping[str, Any], chat: Chat, shown: Sequence[Row]) -> None:
    """Print it to standard output. Arguments are those of the page."""
    console = output_console()
    for part in _parts(found, chat, shown):
        console.print(part)


def _parts(
    found: Mapping[str, Any], chat: Chat, shown: Sequence[Row]
) -> "Iterator[RenderableType]":
    from rich.text import Text

    yield from samples.panels(chat, shown)
    yield _table("Files", ["file", "read as", "rows", "kept", "rejected", "tokens"], (
        [name, ", ".join(found["formats"].get(name, ())),
         *(f"{counts[key]:,}" for key in ("read", "kept", "rejected", "tokens"))]
        for name, counts in found["files"].items()
    ))  # fmt: skip
    lengths = ("length_p50", "length_p95", "length_p99", "length_max")
    yield _table(
        "Splits", ["split", "rows", "tokens", "trained on", "p50", "p95", "p99", "longest"], (
            [split, f"{figures['rows']:,}", f"{figures['tokens']:,}",
             f"{figures['trained_share']:.0%}", *(f"{figures.get(n, 0):,}" for n in lengths)]
            for split, figures in found["splits"].items()
        )
    )  # fmt: skip
    ranges = [(f"{first:,} to {last:,}", count) for first, last, count in found["histogram"]]
    for title, counts in (
        ("Tokens of a row", ranges),
        ("Turns of a row", found["turns"].items()),
        ("What rows are made of", found["shapes"].items()),
        ("Languages", [(one["language"], one["rows"]) for one in found["languages"]]),
        ("Tags", [(one["tag"], one["rows"]) for one in found["tags"]]),
    ):
        if counts:
            yield _bars(title, list(counts)[:MOST_BARS])
    yield from _findings(found)
    if found["problem"]:
        yield Text(printable(f"stage=prepare would refuse these files: {found['problem']}"), "red")


def _findings(found: Mapping[str, Any]) -> "Iterator[RenderableType]":
    from rich.text import Text

    for reason, group in found["examples"].items():
        yield Text(f"{COMPARED.get(reason, reason)}: {group['rows']:,}", "yellow")
        for one in group["first"][:SHOWN]:
            yield Text(printable(f"  {one['place']}: {one['detail']}: {one['row']}"))
    if found["conflicts"]:
        yield Text(f"rows that repeat a question with another answer: {found['conflicts']:,}",
                   "yellow")  # fmt: skip
        for one in found["first_conflicts"][:SHOWN]:
            yield Text(printable(f"  {one['place']} and {one['other']}: {one['question']!r}"))
    if found["left_out_fields"]:
        named = ", ".join(f"{name} ({n:,})" for name, n in found["left_out_fields"].items())
        yield Text(printable(f"Fields that training does not use, and their rows: {named}"))
    untrained = found["untrained_tokens"]
    if untrained["count"]:
        first = ", ".join(f"{t['text']!r} ({t['times']:,} times)" for t in untrained["first"])
        yield Text(
            printable(f"tokens that the model cannot say: {untrained['count']:,}: {first}"),
            "yellow",
        )
    if found["template_prints_the_date"]:
        yield Text("The chat template prints today's date: the dataset will differ tomorrow",
                   "yellow")  # fmt: skip


def _table(title: str, head: Sequence[str], rows: Iterator[Sequence[str]]) -> "Table":
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    made = Table(*head, title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    for column in made.columns[1:]:
        column.justify = "right"
    for row in rows:
        made.add_row(*(escape(printable(cell)) for cell in row))
    return made


def _bars(title: str, counts: Sequence[tuple[str, int]]) -> "Table":
    most = max(count for _, count in counts)
    head = ["", "rows", ""]
    made = _table(title, head, (
        [name, f"{count:,}", "▇" * max(1, round(WIDE * count / most)) if count else ""]
        for name, count in counts
    ))  # fmt: skip
    made.show_header = False
    made.columns[2].justify = "left"
    return made
