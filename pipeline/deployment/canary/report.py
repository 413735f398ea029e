"""The report of a canary: report.json, report.html, which needs nothing else, and canary.png."""

import base64
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path

from pipeline.core.html_page import html_page, section, short, table
from pipeline.core.secrets import mask
from pipeline.deployment.canary.criteria import Finding
from pipeline.deployment.canary.questions import Pair
from pipeline.deployment.canary.run import Record

PAGE, PICTURE, DATA = "report.html", "canary.png", "report.json"
MOST_PAIRS = 50
WORDS = {"worse": ("bad", "worse"), "fine": ("good", "within the margin"), "open": ("dim", "open")}


def write_report(record: Record, out: Path) -> Path:
    """Write the three files; the page."""
    (out / DATA).write_text(mask(json.dumps(record.as_json(), indent=1, ensure_ascii=False)) + "\n")
    picture = ""
    if record.looks or record.metrics:
        draw(record, out / PICTURE)
        picture = base64.b64encode((out / PICTURE).read_bytes()).decode()
    page = out / PAGE
    page.write_text(mask(html(record, picture)), encoding="utf-8")
    return page


def html(record: Record, picture: str) -> str:
    """The page. picture: a PNG in base64; "" for none."""
    kind = "good" if record.decision == "promoted" else "bad"
    versions = [v for v in (record.candidate_version, record.stable_version) if v]
    beside = f"version {versions[0]} beside version {versions[1]}, " if len(versions) == 2 else ""
    head = (
        f'<header><h1>{escape(record.title)}</h1><p class="dim">{record.began}, {beside}'
        f"{record.share:.0%} of the requests, {record.seconds:,.0f} s</p>"
        f'<span class="verdict {kind}">{escape((record.decision or "").capitalize())}</span>'
        f"<p>{escape(record.why)}.</p></header>"
    )
    image = f'<img src="data:image/png;base64,{picture}" alt="" style="max-width:100%">'
    plan = "".join(f"<p>{escape(line)}</p>" for line in record.plan)
    note = (
        '<p class="dim">A difference is the candidate less the stable version; above zero is '
        "worse. Its bounds hold at all looks together, so the first look decides that can.</p>"
    )
    body = "".join(
        [
            head,
            section("What decided", note + _findings(record.findings) if record.findings else ""),
            section("Every look", image if picture else ""),
            section("Sample size, as shown beforehand", plan),
            section("Labelled questions with different answers", _pairs(record.questions)),
            section("Shadow: recorded with consent, answered by both", _pairs(record.shadow)),
        ]
    )
    return html_page(record.title, body)


def _findings(findings: Sequence[Finding]) -> str:
    rows = []
    for each in findings:
        css, words = WORDS[each.state]
        rows.append([
            escape(each.title), f'<b class="{css}">{words}</b>', f"{each.stable:.2%}",
            f"{each.candidate:.2%}", f"{each.low:+.2%} to {each.high:+.2%}",
            f"{each.margin:+.2%}", f"{each.count:,}",
        ])  # fmt: skip
    head = ["criterion", "", "stable", "candidate", "difference", "margin", "of"]
    return table(head, rows, left=2)


def _pairs(pairs: Sequence[Pair]) -> str:
    shown = [pair.as_json() for pair in pairs]
    differing = [pair for pair in shown if not pair["alike"]]
    if not shown:
        return ""
    parts = [f'<p class="dim">{len(shown) - len(differing)} of {len(shown)} answers are alike.</p>']
    for pair in differing[:MOST_PAIRS]:
        rows = "".join(
            f"<dt>{name}</dt><dd>{escape(pair[name]) or '<i>nothing</i>'}</dd>"
            for name in ("question", "expected", "stable", "candidate")
        )
        summary = escape(short(pair["question"]))
        parts.append(f"<details><summary>{summary}</summary><dl>{rows}</dl></details>")
    return "".join(parts)


def draw(record: Record, file: Path) -> None:
    """Each criterion's difference with its bounds and margin, over the candidate's requests."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = [finding.name for finding in record.looks[-1]] if record.looks else []
    panels = [*record.metrics, *names]
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.2 * columns, 2.9 * rows), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    for place, panel in enumerate(panels):
        axes = figure.add_subplot(rows, columns, place + 1)
        if isinstance(panel, Finding):
            course, label = [panel], "labelled questions"
        else:
            course = [f for look in record.looks for f in look if f.name == panel and f.count]
            label = "requests of the candidate"
        if course:
            counts = [f.count for f in course]
            low, high = [100 * f.low for f in course], [100 * f.high for f in course]
            if len(course) > 1:
                axes.fill_between(counts, low, high, color="#76b900", alpha=0.25, linewidth=0)
                axes.plot(counts, [100 * f.value for f in course], color="#4c7a00")
            else:
                value = 100 * course[0].value
                error = [[value - low[0]], [high[0] - value]]
                axes.errorbar(counts, [value], yerr=error, fmt="o", color="#4c7a00", capsize=4)
            margin = 100 * course[-1].margin
            axes.axhline(margin, color="#c62828", linestyle="--", linewidth=1)
            axes.axhline(0, color="#9aa0a6", linewidth=0.8)
            axes.set_title(short(course[-1].title, 60), fontsize=7.5)
        axes.set_xlabel(label, fontsize=8)
        axes.set_ylabel("difference, points", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file)
