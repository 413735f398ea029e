"""report.html: the report as one page that needs nothing else, in light and dark."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from pipeline.core.html_page import html_page, section, short, table
from pipeline.evaluation.findings import Confusion
from pipeline.evaluation.metrics import Metric
from pipeline.evaluation.report import columns, interval, judge_words, label, main_metric, metric_of

NAME = "report.html"


def page(
    report: Mapping[str, Any],
    *,
    title: str,
    worst: Sequence[Mapping[str, Any]],
    confused: Sequence[Confusion],
) -> str:
    """The page.

    report: as evaluation/report.py builds it. worst: records of predictions.jsonl, the worst first,
    each with the main metric's value of the tuned model as "value".
    """
    metric = main_metric(report)
    body = "".join(
        [
            _head(report, title),
            section("Models", _bars(report, metric) + _models(report)),
            section("The gate", _gate(report["gate"])),
            section(f"{metric.heading} by slice", _slices(report, metric)),
            section("Worst answers of the tuned model", _worst(worst, metric, report)),
            section("Near intents that are mixed up", _confused(confused)),
            section("Calibration", _calibration(report.get("calibration", {}), metric)),
            section("The judge", _judge(report.get("judge"))),
            _foot(report),
        ]
    )
    return html_page(title, body)


def _head(report: Mapping[str, Any], title: str) -> str:
    gate = report["gate"]
    kind, said = ("good", "Gate passed") if gate["passed"] else ("bad", "Gate refused")
    return (
        f'<header><h1>{escape(title)}</h1><p class="dim">{report["questions"]:,} test questions, '
        f'greedy answers, 95 % intervals</p><span class="verdict {kind}">{said}</span></header>'
    )


def _bars(report: Mapping[str, Any], metric: Metric) -> str:
    """The main metric of each model: base beside tuned beside the formats."""
    found = {m: f[metric.name] for m, f in report["models"].items() if metric.name in f}
    share = metric.format.endswith("%")
    full = 1.0 if share else max([1e-9, *(value["high"] for value in found.values())])

    def percent(value: float) -> str:
        return f"{100 * min(1.0, max(0.0, value / full)):.2f}"

    rows = []
    for model, value in found.items():
        wide = float(percent(value["high"])) - float(percent(value["low"]))
        rows.append(
            f'<div>{escape(label(model))}</div><div class="track">'
            f'<div class="fill{" base" if model == "base" else ""}" '
            f'style="width:{percent(value["value"])}%"></div>'
            f'<div class="range" style="left:{percent(value["low"])}%;width:{wide:.2f}%"></div>'
            f"</div><b>{metric.text(value['value'])}</b>"
        )
    return f'<p>{metric.heading}</p><div class="bars">{"".join(rows)}</div>' if rows else ""


def _models(report: Mapping[str, Any]) -> str:
    shown = columns(report)
    rows = [
        [escape(label(model)), *(_two_lines(column.cell(figures)) for column in shown)]
        for model, figures in report["models"].items()
    ]
    notes = [
        f"<p>{escape(name)} was not measured: {escape(why)}.</p>"
        for name, why in report["failures"].items()
    ]
    head = ["model", *(column.title for column in shown)]
    return "<br>" + table(head, rows) + "".join(notes)


def _two_lines(cell: str) -> str:
    value, bracket, rest = cell.partition(" (")
    return f"{escape(value)}<small>{escape(rest.rstrip(')'))}</small>" if bracket else escape(cell)


def _gate(gate: Mapping[str, Any]) -> str:
    rows = []
    for condition in gate["conditions"]:
        kind, said = ("good", "passed") if condition["passed"] else ("bad", "refused")
        rows.append([escape(condition["name"]), f'<b class="{kind}">{said}</b>',
                     escape(condition["text"])])  # fmt: skip
    beyond = "".join(f"<p>Compared only: {escape(text)}.</p>" for text in gate["beyond"])
    return (table(["condition", "", "why"], rows, left=3) if rows else "") + beyond


def _slices(report: Mapping[str, Any], metric: Metric) -> str:
    models = list(report["models"])

    def cell(part: Mapping[str, Any], model: str) -> str:
        found = part["models"].get(model)
        return _two_lines(interval(metric, found)) if found else ""

    rows = [
        [f"{escape(part['kind'])} <b>{escape(part['name'])}</b>", f"{part['questions']:,}",
         *(cell(part, model) for model in models)]
        for part in report["slices"]
    ]  # fmt: skip
    return table(["slice", "questions", *map(label, models)], rows) if rows else ""


def _worst(records: Sequence[Mapping[str, Any]], metric: Metric, report: Mapping[str, Any]) -> str:
    parts = []
    for record in records:
        answers = "".join(
            f"<dt>{escape(label(model))}</dt><dd>{escape(text) or '<i>nothing</i>'}</dd>"
            for model, text in record["answers"].items()
        )
        parts.append(
            f"<details><summary>{metric.text(record['value'])} · "
            f"{escape(short(record['question']))}</summary><dl><dt>question</dt><dd>{escape(record['question'])}</dd>"
            f"<dt>expected</dt><dd>{escape(str(record['expected']))}</dd>{answers}"
            f"<dt>row</dt><dd>{escape(record['source'])}</dd></dl></details>"
        )
    return "".join(parts)


def _confused(pairs: Sequence[Confusion]) -> str:
    rows = [
        [escape(short(pair.wanted)), escape(short(pair.given)), f"{pair.count:,}",
         escape(short(pair.example))]
        for pair in pairs
    ]  # fmt: skip
    if not rows:
        return ""
    note = '<p class="dim">Answers to the first that are the expected answer of the second.</p>'
    return note + table(["asked about", "answered about", "answers", "such as"], rows, left=2)


def _calibration(found: Mapping[str, Any], metric: Metric) -> str:
    """A reliability diagram: the value over the confidence, beside the diagonal."""
    if not found:
        return ""
    size, edge = 300, 40
    span = size - 2 * edge

    def at(x: float, y: float) -> tuple[float, float]:
        return edge + span * x, size - edge - span * min(1.0, max(0.0, y))

    most = max(row["questions"] for row in found["bins"])
    dots = "".join(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{3 + 7 * (row["questions"] / most) ** 0.5:.1f}" '
        f'fill="var(--bar)"><title>{row["questions"]} answers, confidence '
        f"{row['confidence']:.2f}, {escape(metric.title)} {metric.text(row['value'])}</title>"
        "</circle>"
        for row in found["bins"]
        for x, y in [at(row["confidence"], row["value"])]
    )
    (left, low), (right, high) = at(0, 0), at(1, 1)
    return (
        f'<p class="dim">Expected calibration error {found["error"]:.3f}. Confidence is the '
        "geometric mean of the probabilities of an answer's tokens; on the line it would equal the "
        f"{escape(metric.title)}. A larger dot has more answers.</p>"
        f'<svg viewBox="0 0 {size} {size}" role="img" aria-label="calibration" fill="var(--ink)" '
        'font-size="11">'
        f'<path d="M{left} {high}V{low}H{right}" fill="none" stroke="var(--line)"/>'
        f'<path d="M{left} {low}L{right} {high}" stroke="var(--grey)" stroke-dasharray="4"/>{dots}'
        f'<text x="{size / 2}" y="{size - 10}" text-anchor="middle">confidence</text>'
        f'<text x="12" y="{size / 2}" text-anchor="middle" '
        f'transform="rotate(-90 12 {size / 2})">{escape(metric.title)}</text>'
        f'<text x="{left - 6}" y="{low + 4}" text-anchor="end">0</text>'
        f'<text x="{left - 6}" y="{high + 4}" text-anchor="end">1</text>'
        f'<text x="{right}" y="{low + 16}" text-anchor="middle">1</text></svg>'
    )


def _judge(judge: Mapping[str, Any] | None) -> str:
    return f"<p>{escape(judge_words(judge))}.</p>" if judge else ""


def _foot(report: Mapping[str, Any]) -> str:
    lines = [
        f"<b>{escape(metric.heading)}</b>: {escape(metric.meaning)}."
        for metric in map(metric_of, report["metrics"].values())
    ]
    lines.append(
        "A simulated format is the tuned model, rounded as the format rounds. What the served "
        "engine answers is in the report of stage=benchmark."
    )
    return f"<footer>{''.join(f'<p>{line}</p>' for line in lines)}</footer>"
