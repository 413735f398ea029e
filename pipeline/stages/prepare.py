"""Conversations and texts → dataset: checked, cleaned and rendered with the model's template.

Every row is kept, or written to rejected.jsonl with the reason; the counts add up. The same files,
settings and seed give the same bytes.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.config.finetune import RowKind
from pipeline.config.schema import Config
from pipeline.core.artifact import Artifact, Outcome
from pipeline.core.console import get_console
from pipeline.core.errors import DataError
from pipeline.core.stage import Stage
from pipeline.data import samples
from pipeline.data.dataset import SPLITS, Row, write_split
from pipeline.data.preparation.decisions import decide
from pipeline.data.preparation.statistics import (
    PERCENTILES,
    choose_samples,
    fields_in_words,
    problem_of,
    reasons_in_words,
    statistics_of,
    untrained_of,
)
from pipeline.data.rows import Rejected
from pipeline.data.settings_checks import check_prepare
from pipeline.models.chat.renderer import Chat
from pipeline.models.checks import check_folder
from pipeline.serving.parsers.detection import serves_tools

STAGE = Stage(
    version=7,
    libraries=("tokenizers", "jinja2", "pyarrow", "rapidfuzz", "numpy", "markdown-it-py", "lxml"),
    optional_libraries=("pypdf", "python-docx", "presidio-analyzer"),
)


def run(config: Config, inputs: Mapping[str, Artifact], out: Path) -> Outcome:
    """Read config.data, reject unusable rows, split, render and write the dataset into `out`.

    Raises:
        ConfigError: prepare.max_length is over the model's context, or a glob is not valid.
        DataError: a file or the model folder cannot be used, or too many rows were rejected.
    """
    shape = check_folder(config.model.path)
    check_prepare(config, shape)
    chat = Chat.load(config.model.path)
    decided = decide(config, chat, lambda: serves_tools(chat))
    kept = decided.rows.kept
    _write_rejected(decided.rows.rejected, out / "rejected.jsonl")
    statistics = statistics_of(decided, chat)
    _show_unused(statistics, config.data.ignore_fields)
    if problem := problem_of(config, statistics, decided, str(out / "rejected.jsonl")):
        raise DataError(problem)
    statistics["untrained_tokens"] = untrained_of(kept, shape, chat)
    for split in SPLITS:
        rows = (row.unpack() for row in decided.epoch if row.split == split)
        write_split(out, split, rows, decided.kind)
    chat.save(out / "tokenizer")
    (out / "statistics.json").write_text(json.dumps(statistics, indent=2) + "\n")
    shown = choose_samples(kept, config.prepare.samples)
    page = samples.page(chat, shown, statistics["histogram"])
    (out / "samples.html").write_text(page, encoding="utf-8")
    _show(chat, shown, statistics, decided.kind)
    return Outcome("dataset", _metrics(statistics), proof={"chat_sha256": chat.sha256})


def _write_rejected(rejected: Sequence[Rejected], file: Path) -> None:
    with file.open("w", encoding="utf-8") as stream:
        for row in rejected:
            stream.write(json.dumps(asdict(row), ensure_ascii=False) + "\n")


def _metrics(statistics: Mapping[str, Any]) -> dict[str, float]:
    rows = statistics["rows"]
    metrics = {"rows_read": rows["read"], "rows_rejected": rows["rejected"]}
    metrics["reject_share"] = rows["rejected"] / max(1, rows["read"])
    metrics["conflicts"] = statistics["conflicts"]
    for reason, count in statistics["rejected"].items():
        metrics[f"rejected_{reason.replace(' ', '_').lower()}"] = count
    for split, figures in statistics["splits"].items():
        metrics |= {f"{split}_{name}": value for name, value in figures.items()}
    return metrics


def _show_unused(statistics: Mapping[str, Any], ignored: Sequence[str]) -> None:
    """Warn of files without rows, of rejected rows, and of fields and settings without effect."""
    from rich.markup import escape

    rows = statistics["rows"]
    empty = [name for name, counts in statistics["files"].items() if not counts["read"]]
    if empty:
        get_console().print(f"[yellow]Files without rows[/]: {escape(', '.join(empty))}")
    if rows["rejected"]:
        reasons = reasons_in_words(statistics["rejected"], statistics["rejected_fields"])
        get_console().print(
            f"[yellow]{rows['rejected']} of {rows['read']} rows are not used[/]: "
            + escape(f"{reasons} (see rejected.jsonl)")
        )
    if statistics["masked"]:
        console = get_console()
        console.print(f"Personal data that is masked: {fields_in_words(statistics['masked'])}")
    if unknown := [name for name in ignored if name not in statistics["left_out_fields"]]:
        named = escape(", ".join(unknown))
        get_console().print(f"[yellow]data.ignore_fields: in no row[/]: {named}")
    if statistics["left_out_fields"]:
        named = escape(fields_in_words(statistics["left_out_fields"]))
        get_console().print(f"Fields that training does not use, and their rows: {named}")


def _show(chat: Chat, shown: Sequence[Row], statistics: Mapping[str, Any], kind: RowKind) -> None:
    """Print samples, splits and warnings."""
    from rich.markup import escape
    from rich.table import Table

    console = get_console()
    console.print(*samples.panels(chat, shown), sep="\n")
    table = Table(
        "split", "rows", "tokens", "trained on", *(f"p{p}" for p in PERCENTILES), "longest"
    )
    for split, figures in statistics["splits"].items():
        lengths = [figures.get(f"length_{p}", 0) for p in [*(f"p{p}" for p in PERCENTILES), "max"]]
        cells = [
            f"{figures['rows']:,}",
            f"{figures['tokens']:,}",
            f"{figures['trained_share']:.0%}",
        ]
        table.add_row(split, *cells, *map(str, lengths))
    for column in table.columns[1:]:
        column.justify = "right"
    console.print(table)
    if "mixture" in statistics:
        parts = Table("training file", "weight", "rows", "in an epoch", "share of trained tokens")
        for part in statistics["mixture"]:
            share = f"{part['share_of_trained_tokens']:.1%}"
            cells = [f"{part[key]:,}" for key in ("rows", "rows_in_an_epoch")]
            parts.add_row(escape(part["file"]), f"{part['weight']:g}", *cells, share)
        console.print(parts)
    if statistics["conflicts"]:
        first = statistics["first_conflicts"][0]
        told = "verdict on the same answers" if kind != "answers" else "answer"
        console.print(
            f"[yellow]{statistics['conflicts']} rows repeat a question with another {told}[/]: "
            + escape(f"{first['question']!r} in {first['place']} and {first['other']}")
            + " (more in statistics.json)"
        )
    untrained = statistics["untrained_tokens"]
    if untrained["count"]:
        first = ", ".join(f"{t['text']!r} ({t['times']} times)" for t in untrained["first"][:3])
        console.print(
            f"[yellow]{untrained['count']} tokens of your answers have untrained output rows in "
            f"this model[/]: {escape(first)}. Their rows are alike, so the model confuses them; an "
            "adapter cannot change that: train with finetune=sft or "
            "finetune.adapter.modules_to_save=[lm_head], or use another base model"
        )
    if statistics["template_prints_the_date"]:
        console.print(
            "[yellow]The chat template prints today's date[/]: the dataset will differ tomorrow"
        )
