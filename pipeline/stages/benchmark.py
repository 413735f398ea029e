"""Engine → report: latency and throughput through its HTTP endpoint, and accuracy.

Test questions are sent to a server process at several loads. The answers are compared with the
expected ones, to show that the served model is the one that was evaluated.
"""

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config.schema import Config
from pipeline.core.artifact import SCRATCH, Artifact, Outcome
from pipeline.core.console import get_console, progress
from pipeline.core.stage import Stage
from pipeline.engines.description import Description
from pipeline.engines.memory import check_answer_length

if TYPE_CHECKING:
    from pipeline.serving.benchmark.load_generator import Level

STAGE = Stage(
    version=2,
    libraries=("fastapi", "uvicorn", "httpx", "aiohttp", "numpy"),
)


WARM_UP_REQUESTS = 4
PERCENTILES = (50, 95, 99)
ANSWERS = "answers.jsonl"
MEASURED = ("report.json", "report.md", "latency.png")  # the files with times


def run(config: Config, inputs: Mapping[str, Artifact], out: Path) -> Outcome:
    """See pipeline/stages/__init__.py.

    Raises:
        PipelineError: the server does not start, or refuses or truncates an answer.
    """
    from pipeline.data.dataset import read_split
    from pipeline.evaluation.metrics import Answers, gate_metric
    from pipeline.serving.benchmark.load_generator import run_load
    from pipeline.serving.server_process import running_server

    settings = config.benchmark
    engine = inputs["build"].require("engine").path
    check_answer_length(settings.max_tokens, Description.read(engine).max_seq_len)
    rows = read_split(inputs["prepare"].require("dataset").path, "test")
    sample = random.Random(config.seed).sample(rows, min(len(rows), settings.requests))
    rows = [sample[i % len(sample)] for i in range(settings.requests)]
    bodies = [
        {
            "model": config.model.name,
            "messages": row.messages[:-1],
            "temperature": 0,
            "max_tokens": settings.max_tokens,
        }
        for row in rows
    ]
    scratch = out / SCRATCH
    scratch.mkdir(exist_ok=True)
    levels = []
    with (
        running_server(engine, model=config.model.name, log=scratch / "server.log") as server,
        progress() as bar,
    ):
        task = bar.add_task("loads", total=len(settings.concurrency))
        run_load(server.url, bodies[:WARM_UP_REQUESTS], concurrency=1)
        for concurrency in settings.concurrency:
            levels.append(run_load(server.url, bodies, concurrency))
            bar.advance(task)
        memory = server.peak_memory_bytes()
    figures = [_figures(level) for level in levels]
    metric = gate_metric()
    served = Answers(
        texts=[answer.text for level in levels for answer in level.answers],
        expected=[row.answer or "" for _ in levels for row in rows],
    )
    first = [answer.text for answer in levels[0].answers]
    alike = [a.text == text for lv in levels for a, text in zip(lv.answers, first, strict=True)]
    overall = {
        f"served_{metric.name}": metric.mean(served),
        "same_answer_at_every_load": sum(alike) / len(alike),
        "start_seconds": server.start_seconds,
        "peak_memory_mib": memory / 2**20,
    }
    report = {**overall, "requests": settings.requests, "loads": figures}
    write_answers(out / ANSWERS, levels)
    (out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    (out / "report.md").write_text(_markdown(overall, figures))
    _plot(figures, out / "latency.png")
    _show(figures)
    named = {
        f"{name}/at_{load['at_once']}": load[key]
        for load in figures
        for name, key in TRACKED.items()
    }
    return Outcome("benchmark", {**overall, **named}, measured=MEASURED)


def write_answers(file: Path, levels: Sequence["Level"]) -> None:
    """Write what was served: a line of JSON for each load, with its answers."""
    with file.open("w", encoding="utf-8") as stream:
        for level in levels:
            answers = [answer.text for answer in level.answers]
            stream.write(json.dumps({"at_once": level.concurrency, "answers": answers}) + "\n")


# Tracked metrics of each load: their names in the tracker and in the report.
TRACKED = {
    "output_tokens_per_second": "output_tokens_per_second",
    "requests_per_second": "requests_per_second",
    "first_token_ms": "first_token_ms_p50",
    "token_ms": "token_ms_p50",
    "latency_ms": "latency_ms_p50",
    "latency_ms_p95": "latency_ms_p95",
}
# Columns of the table.
COLUMNS = {
    "at once": "at_once",
    "requests/s": "requests_per_second",
    "tokens/s": "output_tokens_per_second",
    "first token p50, ms": "first_token_ms_p50",
    "p95": "first_token_ms_p95",
    "a token p50, ms": "token_ms_p50",
    "answer p50, ms": "latency_ms_p50",
    "p95 ": "latency_ms_p95",
}


def _figures(level: "Level") -> dict[str, Any]:
    """Throughput and percentiles at one load; times in milliseconds."""
    tokens = sum(answer.tokens for answer in level.answers)
    times = {
        "first_token_ms": [answer.first for answer in level.answers],
        "token_ms": [a.per_token for a in level.answers if a.per_token is not None] or [0.0],
        "latency_ms": [answer.last for answer in level.answers],
    }
    return {
        "at_once": level.concurrency,
        "seconds": level.seconds,
        "requests_per_second": len(level.answers) / level.seconds,
        "output_tokens_per_second": tokens / level.seconds,
        **{
            f"{name}_p{p}": 1000 * _percentile(seconds, p)
            for name, seconds in times.items()
            for p in PERCENTILES
        },
    }


def _percentile(values: Sequence[float], percent: int) -> float:
    """The percentile of the values by nearest rank."""
    ordered = sorted(values)
    return ordered[max(0, -(-percent * len(ordered) // 100) - 1)]


def _markdown(overall: Mapping[str, float], figures: Sequence[Mapping[str, Any]]) -> str:
    lines = ["# Benchmark of the served engine", ""]
    lines += [f"- {name.replace('_', ' ')}: {value:.4g}" for name, value in overall.items()]
    lines += ["", "| " + " | ".join(COLUMNS) + " |", "|" + " ---: |" * len(COLUMNS)]
    for load in figures:
        lines.append("| " + " | ".join(_short(load[key]) for key in COLUMNS.values()) + " |")
    return "\n".join(lines) + "\n"


def _show(figures: Sequence[Mapping[str, Any]]) -> None:
    from rich.table import Table

    table = Table(*COLUMNS, box=None, pad_edge=False)
    for load in figures:
        table.add_row(*(_short(load[key]) for key in COLUMNS.values()))
    get_console().print(table)


def _short(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:,.1f}"


def _plot(figures: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Throughput and latency over load, side by side."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    throughput, latency = figure.subplots(1, 2)
    loads = [load["at_once"] for load in figures]
    throughput.plot(loads, [load["output_tokens_per_second"] for load in figures], "o-")
    throughput.set(title="throughput", xlabel="requests at once", ylabel="output tokens/s")
    for key, label in (
        ("latency_ms_p95", "answer, p95"),
        ("latency_ms_p50", "answer, median"),
        ("first_token_ms_p95", "first token, p95"),
        ("first_token_ms_p50", "first token, median"),
    ):
        latency.plot(loads, [load[key] for load in figures], "o-", label=label)
    latency.set(title="latency", xlabel="requests at once", ylabel="ms")
    latency.legend(frameon=False, fontsize="small")
    for axes in (throughput, latency):
        axes.set_xticks(loads)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file)
