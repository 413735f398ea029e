"""Prints the results of a pipeline run: tables, and what to do next."""

import json
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.console import get_console, natural
from pipeline.evaluation.overlap import exact_match
from pipeline.evaluation.report import forgotten, label, main_metric
from pipeline.evaluation.served import describe
from pipeline.orchestration.summary import SUMMARY

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

    from pipeline.tracking.client import Delivery

ANSWERS = 3
BAR = 24  # characters
EIGHTHS = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"]


def show_summary(
    summary: Mapping[str, Any], artifacts: Path, console: "Console | None" = None
) -> None:
    """Print the summary: stages, answers, accuracy, engine, and what to do next."""
    console, metric = console or get_console(), main_metric(summary)
    parts: list[tuple[str, RenderableType | None]] = [
        ("Stages", _stage_table(summary)),
        ("Training", _training(summary)),
        ("Answers to questions that training never saw", _answer_table(artifacts)),
        (f"{metric.heading} on them, with its 95 % interval", _accuracy_table(summary)),
        ("General perplexity, which forgetting raises", forgotten(summary["accuracy"]) or None),
        ("Engine", _engine_table(summary)),
        ("Overruled", _overruled(summary)),
        ("Next", _next_steps(summary, artifacts)),
    ]
    objective = summary.get("objective", "sft")  # a summary of an earlier version has none
    trained = summary["method"] + ("" if objective == "sft" else f" with {objective}")
    title = f"{summary['model']}: {trained}, {summary['format']}"
    console.print()
    console.rule(f"[bold green]{title}")
    for heading, content in parts:
        if content is not None:
            console.print(f"\n[bold]{heading}[/]")
            console.print(content, soft_wrap=isinstance(content, str))


def show_delivery(delivery: "Delivery", console: "Console | None" = None) -> None:
    """Print the model registry's answer. Runs that wait for the tracker are reported elsewhere."""
    console = console or get_console()
    if delivery.registered:
        answer = delivery.registered
        aliases = " and ".join(answer["aliases"])
        console.print(
            f"Registered as [bold]{answer['name']}[/] version {answer['version']}, {aliases}: "
            f"{answer['reason']}",
            soft_wrap=True,
        )
        if "champion" not in answer["aliases"]:
            console.print(
                "`stage=serve` serves this one, serve.version=champion the champion",
                markup=False,
                soft_wrap=True,
            )


def _stage_table(summary: Mapping[str, Any]) -> "Table":
    table = _table("stage", "makes", ">time", "", ">memory", ">on disk")
    longest = max((s["seconds"] for s in summary["stages"].values()), default=0)
    for name, stage in summary["stages"].items():
        note = (
            "[dim]reused[/]"
            if stage["reused"]
            else f"[cyan]{_bar(stage['seconds'], longest, 16)}[/]"
        )
        if stage["failure"]:
            note = "[red]failed the gate[/]"
        table.add_row(
            name,
            stage["kind"].replace("_", " "),
            f"{stage['seconds']:.1f} s",
            note,
            _size(stage["peak_memory_bytes"]),
            _size(stage["bytes"]),
        )
    totals = summary["totals"]
    table.add_section()
    table.add_row(
        "all", "", f"{totals['seconds']:.1f} s", "", _size(totals["peak_memory_bytes"]),
        _size(totals["bytes"]), style="bold",
    )  # fmt: skip
    return table


def _accuracy_table(summary: Mapping[str, Any]) -> "Table | None":
    """The models and the simulated formats, then the engine as clients reach it."""
    if not summary["accuracy"]:
        return None
    metric, served = main_metric(summary), summary["served"]
    models = {label(name): score for name, score in summary["accuracy"].items()}
    models |= {"served": served} if served else {}
    scores = {name: score[metric.name] for name, score in models.items() if metric.name in score}
    if not scores:
        return None
    # A share's bar is full at 100 %, another metric's at the largest value.
    shares = metric.format.endswith("%")
    full = 1.0 if shares else max(score["value"] for score in scores.values())
    table = _table("", "", f">{metric.title}", ">interval", "")
    for name, score in scores.items():
        low, high = (
            f"{score[k]:.0%}" if shares else metric.text(score[k]) for k in ("low", "high")
        )
        colour = "red" if name == "base" else "green"
        table.add_row(
            name,
            f"[{colour}]{_bar(score['value'], full, BAR)}[/]",
            metric.text(score["value"]),
            f"[dim]{low} to {high}[/]",
            _note(name, summary),
            style="bold" if name == "served" else None,
        )
    gate = summary["gate"]
    table.caption = "gate passed" if gate["passed"] else f"gate failed: {gate['reason']}"
    table.caption_style = "green" if gate["passed"] else "bold red"
    table.caption_justify = "left"
    return table


def _note(name: str, summary: Mapping[str, Any]) -> str:
    if name == "served":
        return describe(summary["served"])
    return "exported" if name == label(summary["format"]) else ""


def _training(summary: Mapping[str, Any]) -> str | None:
    """How long training was, and whose weights are the result."""
    found = summary["training"]
    return f"  {found['length']}; {found['kept']}" if found else None


def _overruled(summary: Mapping[str, Any]) -> str | None:
    """Refusals of proofs that a setting overruled, and the reasons that it gave."""
    lines = [
        f"  [bold red]{stage}[/]: {_escape(entry['refusal'])}; accepted because: "
        f"{_escape(entry['reason'])}"
        for stage, entry in summary["overruled"].items()
    ]
    return "\n".join(lines) or None


def _answer_table(artifacts: Path) -> "Table | None":
    """Questions from the whole test set that only the tuned model answers right."""
    try:
        lines = (artifacts / "evaluate" / "predictions.jsonl").read_text().splitlines()
    except OSError:
        return None
    rows = [json.loads(line) for line in lines]
    learned = [row for row in rows if _is_right(row, "tuned") and not _is_right(row, "base")]
    rows = learned or rows
    table = _table("question", "base", "tuned")
    for row in rows[:: max(1, len(rows) // ANSWERS)][:ANSWERS]:
        base, tuned = row["answers"]["base"], row["answers"]["tuned"]
        table.add_row(
            _short(row["question"]), f"[red]{_short(base)}[/]", f"[green]{_short(tuned)}[/]"
        )
    table.show_lines = True
    return table


def _is_right(row: Mapping[str, Any], model: str) -> bool:
    return exact_match(row["answers"][model], row["expected"])


def _engine_table(summary: Mapping[str, Any]) -> "Table | None":
    """The engine's runtime and size, and the benchmark's figures at each load."""
    engine, stages = summary["engine"], summary["stages"]
    if not engine:
        return None
    table = _table("", "")
    table.show_header = False
    table.add_row("runtime", f"{engine['runtime']} {engine['version']}, {engine['precision']}")
    table.add_row("size", _size(stages["build"]["bytes"]))
    figures: dict[str, list[str]] = {}
    measured = stages.get("benchmark", {"metrics": {}})["metrics"]
    for name, value in sorted(measured.items(), key=lambda item: natural(item[0])):
        figure, _, load = name.partition("/")
        if load == "served":
            continue  # in the table of accuracies
        shown = f"{_figure(value)} [dim]{load.replace('_', ' ')}[/]"
        figures.setdefault(figure.replace("_", " "), []).append(shown)
    for figure, values in figures.items():
        table.add_row(figure, "   ".join(values))
    return table


def _next_steps(summary: Mapping[str, Any], artifacts: Path) -> str:
    """Commands to copy, without line breaks."""
    uri = summary["tracking"]
    address = f"http://{summary['serve']['host']}:{summary['serve']['port']}/v1/chat/completions"
    question = [{"role": "user", "content": "My card was stolen, what now?"}]
    body = json.dumps({"model": summary["model"], "messages": question})
    steps = {
        "see every run and the registered model": (
            f"mlflow ui --backend-store-uri {uri}" if (uri or "").startswith("sqlite") else uri
        ),
        "serve the engine": "python -m pipeline stage=serve",
        "and ask it": " \\\n    ".join(
            [f"curl {address}", "-H 'Content-Type: application/json'", f"-d '{body}'"]
        ),
        "read all metrics": f"cat {artifacts / SUMMARY}",
    }
    return "\n".join(f"  [dim]# {what}[/]\n  {_escape(do)}" for what, do in steps.items() if do)


def _short(text: str) -> str:
    return _escape(textwrap.shorten(text, 160, placeholder=" …")) or "[dim]nothing[/]"


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _figure(value: float) -> str:
    """Four significant digits of a small number, and no decimals of a large one."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _size(count: float) -> str:
    unit, size = next(
        ((u, s) for u, s in (("GiB", 2**30), ("MiB", 2**20)) if count >= s), ("KiB", 2**10)
    )
    return f"{count / size:.{2 if unit == 'GiB' else 1}f} {unit}"


def _bar(value: float, full: float, width: int) -> str:
    """A bar of at most `width` characters, in steps of an eighth of one."""
    eighths = round(8 * width * min(1.0, value / full)) if full else 0
    return ("█" * (eighths // 8) + EIGHTHS[eighths % 8]).strip() or "▏"


def _table(*columns: str) -> "Table":
    """A plain table; columns whose name begins with ">" are right-aligned."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim")
    for column in columns:
        table.add_column(column.removeprefix(">"), justify="right" if column[:1] == ">" else "left")
    return table
