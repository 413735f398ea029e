"""What stage=inspect found, as one HTML page that needs nothing else. HTML in data is text."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from pipeline.core.html_page import html_page, section, short, table
from pipeline.data import samples
from pipeline.data.dataset import Row
from pipeline.data.inspection.profile import COMPARED
from pipeline.models.chat.renderer import Chat


def page(found: Mapping[str, Any], chat: Chat, shown: Sequence[Row]) -> str:
    """found: as `profile` gives it. shown: rows whose tokens and masks are shown."""
    title = f"Data for {found['model']}"
    return html_page(
        title,
        "".join(
            [
                _head(found, title),
                section("Files", _files(found)),
                section("Splits and lengths", _splits(found)),
                section("Tokens of a row", _bars(_ranges(found["histogram"]))),
                section("Turns of a row", _bars(found["turns"].items())),
                section("What rows are made of", _bars(found["shapes"].items())),
                section("Languages", _languages(found["languages"])),
                section("Tags", _bars((one["tag"], one["rows"]) for one in found["tags"])),
                section("Mixture", _mixture(found.get("mixture", ()))),
                section("Duplicates and leaks", _examples(found, compared=True)),
                section("One question, two answers", _conflicts(found)),
                section("Other rejected rows", _examples(found, compared=False)),
                section("Fields without effect", _bars(found["left_out_fields"].items())),
                section("Tokens that the model cannot say", _untrained(found["untrained_tokens"])),
                section("Samples, with what is trained on", _samples(chat, shown)),
                "<footer><p>Percentages and tokens are of the rows that are kept. What counts as "
                "the same is explained in docs/data.md.</p></footer>",
            ]
        ),
    )


def _head(found: Mapping[str, Any], title: str) -> str:
    rows = found["rows"]
    kind, said = ("bad", "stage=prepare would refuse these files") if found["problem"] else (
        "good", "stage=prepare would take these files")  # fmt: skip
    why = f"<p>{escape(found['problem'])}</p>" if found["problem"] else ""
    dated = ""
    if found["template_prints_the_date"]:
        dated = "<p>The chat template prints today's date: the dataset will differ tomorrow.</p>"
    return (
        f'<header><h1>{escape(title)}</h1><p class="dim">{rows["read"]:,} rows read, '
        f"{rows['kept']:,} kept, {rows['rejected']:,} rejected</p>"
        f'<span class="verdict {kind}">{said}</span>{why}{dated}</header>'
    )


def _files(found: Mapping[str, Any]) -> str:
    rows = [
        [escape(name), *(f"{counts[key]:,}" for key in ("read", "kept", "rejected", "tokens"))]
        for name, counts in found["files"].items()
    ]
    return table(["file", "rows", "kept", "rejected", "tokens"], rows) if rows else ""


def _splits(found: Mapping[str, Any]) -> str:
    rows = []
    for split, figures in found["splits"].items():
        lengths = [figures.get(f"length_{name}", 0) for name in ("p50", "p95", "p99", "max")]
        rows.append([
            split, f"{figures['rows']:,}", f"{figures['tokens']:,}",
            f"{figures['trained_share']:.1%}", *(f"{length:,}" for length in lengths),
        ])  # fmt: skip
    head = ["split", "rows", "tokens", "trained on", "median length", "p95", "p99", "longest"]
    return table(head, rows)


def _ranges(bins: Iterable[Sequence[int]]) -> list[tuple[str, int]]:
    return [(f"{first:,} to {last:,}", count) for first, last, count in bins]


def _bars(counts: Iterable[tuple[str, int]]) -> str:
    counts = list(counts)
    most = max((count for _, count in counts), default=0)
    rows = [
        f'<div>{escape(short(name))}</div><div class="track"><div class="fill" '
        f'style="width:{100 * count / most:.2f}%"></div></div><b>{count:,}</b>'
        for name, count in counts
    ]
    return f'<div class="bars">{"".join(rows)}</div>' if rows else ""


def _languages(found: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [escape(one["language"]), f"{one['rows']:,}", f"{one['share']:.1%}",
         f"{one['named_so']:,}",
         escape(", ".join(f"{name} ({n:,})" for name, n in one["named_otherwise"].items()))]
        for one in found
    ]  # fmt: skip
    note = '<p class="dim">Found in the text by fastText. Undetermined: too short, or not sure.</p>'
    head = ["language", "rows", "share", "rows that name it", "rows that name another"]
    return note + table(head, rows) if rows else ""


def _mixture(parts: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [escape(part["file"]), f"{part['weight']:g}", f"{part['rows']:,}",
         f"{part['rows_in_an_epoch']:,}", f"{part['share_of_trained_tokens']:.1%}"]
        for part in parts
    ]  # fmt: skip
    head = ["training file", "weight", "rows", "in an epoch", "share of trained tokens"]
    return table(head, rows) if rows else ""


def _examples(found: Mapping[str, Any], *, compared: bool) -> str:
    parts = []
    for reason, group in found["examples"].items():
        if (reason in COMPARED) != compared:
            continue
        rows = [
            [escape(one["place"]), escape(one["detail"]), escape(one["row"])]
            for one in group["first"]
        ]
        advice = f'<p class="dim">{escape(group["advice"])}.</p>' if group["advice"] else ""
        fields = found["rejected_fields"].get(reason, {})
        named = ", ".join(f"{name} ({count:,})" for name, count in fields.items())
        parts.append(
            f"<details><summary>{escape(COMPARED.get(reason, reason))}: <b>{group['rows']:,}</b>"
            f"</summary>{advice}{f'<p>Fields: {escape(named)}</p>' if named else ''}"
            f"{table(['row', 'why', 'begins with'], rows, left=3)}</details>"
        )
    return "".join(parts) or ("<p>None.</p>" if compared else "")


def _conflicts(found: Mapping[str, Any]) -> str:
    rows = [
        [escape(short(one["question"])), escape(one["place"]), escape(one["other"])]
        for one in found["first_conflicts"]
    ]
    if not rows:
        return ""
    more = f"<p>{found['conflicts']:,} rows; both are kept.</p>"
    return more + table(["question", "row", "the other row"], rows, left=3)


def _untrained(found: Mapping[str, Any]) -> str:
    rows = [
        [f"<code>{escape(repr(token['text']))}</code>", f"{token['id']}", f"{token['times']:,}"]
        for token in found["first"]
    ]
    if not rows:
        return ""
    note = (
        f"<p>{found['count']:,} tokens of the training answers have output rows that look "
        "untrained in this model. An adapter cannot change that: train with finetune=sft or "
        "finetune.adapter.modules_to_save=[lm_head], or use another base model.</p>"
    )
    return note + table(["token", "id", "times"], rows)


def _samples(chat: Chat, shown: Sequence[Row]) -> str:
    parts = []
    for row in shown:
        for name, avoided, ids, mask in samples.sides(row):
            mark = '<mark class="worse">' if avoided else "<mark>"
            text = "".join(
                f"{mark}{escape(piece)}</mark>" if trained else escape(piece)
                for piece, trained in samples.runs(chat, ids, mask)
            )
            parts.append(
                f"<details open><summary>{escape(name)} · trained on {sum(mask):,} of "
                f"{len(mask):,} tokens</summary><pre>{text}</pre></details>"
            )
    return "".join(parts)
