"""Engine → report: what its answers are worth, and its latency and throughput, through HTTP.

The engine is served by a process of its own, as stage=serve does it. All test questions are asked
as a client asks that sets nothing, so their answers are sampled as the model's defaults say. This
accuracy is the one that the gate, the registry and the summary use. Then the same requests are sent
at several loads, for times and rates.
"""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config.schema import Config
from pipeline.core.artifact import SCRATCH, Artifact, Outcome
from pipeline.core.console import get_console, progress
from pipeline.core.errors import ArtifactError, DataError
from pipeline.core.stage import Stage
from pipeline.engines.description import Description
from pipeline.engines.memory import check_answer_length

if TYPE_CHECKING:
    from pipeline.data.dataset import Row
    from pipeline.evaluation.confidence import Estimate
    from pipeline.evaluation.gate import Verdict
    from pipeline.evaluation.measure import Measured
    from pipeline.evaluation.metrics import Answers
    from pipeline.serving.benchmark.load_generator import Level

STAGE = Stage(
    version=3,
    libraries=("fastapi", "uvicorn", "httpx", "aiohttp", "numpy", "tokenizers", "jinja2",
               "rapidfuzz", "sacrebleu"),
    optional_libraries=("sentence-transformers", "jsonschema", "torch", "transformers"),
)  # fmt: skip


WARM_UP_REQUESTS = 4
PERCENTILES = (50, 95, 99)
MEASURED = ("report.json", "report.md", "latency.png")  # the files with times


def run(config: Config, inputs: Mapping[str, Artifact], out: Path) -> Outcome:
    """Write report.json, report.md, answers.jsonl and latency.png.

    Raises:
        ArtifactError: the models were evaluated on another dataset.
        DataError: there are no test questions, or none that the engine takes.
        PipelineError: the server does not start, or fails.
    """
    from pipeline.data.dataset import read_split
    from pipeline.evaluation import served
    from pipeline.evaluation.resources import VERDICTS
    from pipeline.serving.benchmark.load_generator import run_load
    from pipeline.serving.benchmark.serving_engine import ask, requests_for, sampling_of
    from pipeline.serving.server_process import running_server

    settings, model = config.benchmark, config.model.name
    build = inputs["build"].require("engine")
    dataset = inputs["prepare"].require("dataset").path
    rows = read_split(dataset, "test")
    if not rows:
        raise DataError(f"{dataset} has no test questions: set data.test, run stage=prepare")
    evaluated = inputs["evaluate"].require("report")
    made_from = evaluated.manifest.inputs.get("prepare")
    if made_from != inputs["prepare"].manifest.digest:
        raise ArtifactError(
            f"{evaluated.path} was made from another dataset than {dataset}: run "
            "`python -m pipeline stage=evaluate` again with matching settings"
        )
    check_answer_length(settings.max_tokens, Description.read(build.path).max_seq_len)
    scratch = out / SCRATCH
    scratch.mkdir(exist_ok=True)
    levels = []
    with (
        running_server(build.path, model=model, log=scratch / "server.log") as server,
        progress() as bar,
    ):
        questions = bar.add_task("questions", total=len(rows))
        answers, refused = ask(
            server,
            build,
            rows,
            model=model,
            most_tokens=config.evaluate.max_new_tokens,
            seed=config.seed,
            concurrency=max(settings.concurrency),
            advance=lambda: bar.advance(questions),
        )
        fitting = [row for row, no in zip(rows, refused, strict=True) if not no]
        if not fitting:
            raise DataError(
                f"all {len(rows)} test questions are longer than engine.max_input_len: raise it, "
                "run stage=build"
            )
        asked = random.Random(config.seed).sample(fitting, min(len(fitting), settings.requests))
        asked = [asked[i % len(asked)] for i in range(settings.requests)]
        most = settings.max_tokens
        loads = requests_for(build, asked, model, most_tokens=most, seed=config.seed)
        task = bar.add_task("loads", total=len(settings.concurrency))
        run_load(server.url, loads[:WARM_UP_REQUESTS], concurrency=1)
        for concurrency in settings.concurrency:
            levels.append(run_load(server.url, loads, concurrency))
            bar.advance(task)
        memory = server.peak_memory_bytes()
        benchmarks = _benchmarks(config, server.url, build.path, scratch)
    description = json.loads((build.path / "engine.json").read_text())
    accuracy, measured, verdicts = _measure(config, rows, answers, evaluated.path, out, {
        "questions": len(rows),
        "runtime": description["runtime"],
        "version": description["version"],
        "precision": description["precision"],
        "sampling": sampling_of(build),
        "cut": sum(answers.cut) - sum(refused),
        "refused": sum(refused),
        "at_once": max(settings.concurrency),
    }, benchmarks)  # fmt: skip
    failures = [verdict.line for verdict in verdicts if not verdict.passed]
    served.write_answers(out, rows, measured)
    figures = [_figures(level) for level in levels]
    first = [answer.text for answer in levels[0].answers]
    alike = [a.text == text for lv in levels for a, text in zip(lv.answers, first, strict=True)]
    overall = {
        "same_answer_at_every_load": sum(alike) / len(alike),
        "start_seconds": server.start_seconds,
        "peak_memory_mib": memory / 2**20,
    }
    verdict = {
        "passed": not failures,
        "failures": failures,
        "conditions": [verdict.as_json() for verdict in verdicts],
    }
    report = {"served": accuracy, "gate": verdict, **overall}
    report |= {"requests": settings.requests, "loads": figures}
    (out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    (out / "report.md").write_text(_markdown(accuracy, failures, overall, figures))
    _plot(figures, out / "latency.png")
    _show(accuracy, figures)
    named = {
        f"{name}/at_{load['at_once']}": load[key]
        for load in figures
        for name, key in TRACKED.items()
    }
    named_figures = [*accuracy["metrics"], served.LESS_TUNED]
    shares = {f"{n}/served": accuracy[n]["value"] for n in named_figures if n in accuracy}
    shares |= {
        f"benchmark/{name}": figure["value"] for name, figure in accuracy["benchmarks"].items()
    }
    shares |= {f"{name}/served": float(accuracy[name]) for name in ("questions", "cut", "refused")}
    return Outcome(
        "benchmark",
        {**shares, **overall, **named},
        proof={"served": accuracy},
        failure="; ".join(failures) or None,
        measured=(*MEASURED, *([VERDICTS] if (out / VERDICTS).exists() else ())),
    )


def files(config: Config) -> list[Path]:
    """Files that decide what is measured."""
    return config.evaluate.files()


def _measure(
    config: Config,
    rows: "Sequence[Row]",
    answers: "Answers",
    evaluate: Path,
    out: Path,
    facts: Mapping[str, Any],
    benchmarks: "Mapping[str, Estimate]",
) -> "tuple[dict[str, Any], Measured, list[Verdict]]":
    """The served engine's figures, its values, and what the gate says of them.

    facts: of the engine and the questions. benchmarks: results by task.metric.
    """
    from pipeline.config.evaluate import BASE, SERVED, TUNED
    from pipeline.evaluation import gate, report, served
    from pipeline.evaluation.measure import Bootstrap, measure
    from pipeline.evaluation.predictions import read_predictions
    from pipeline.evaluation.resources import Resources, metrics_of

    settings = config.evaluate
    metrics = metrics_of(settings)
    resources = Resources(settings, out, seed=config.seed)
    bootstrap = Bootstrap(settings.bootstrap_samples, config.seed)
    earlier = read_predictions(evaluate, rows)
    answers = replace(answers, asked=earlier[TUNED].answers.asked, base=earlier[BASE].answers.texts)
    measured = measure(metrics, answers, resources, served=True)
    models = {**earlier, SERVED: measured}
    found = dict(facts)
    main = next((n for n in (settings.main, *measured.samples) if n in measured.samples), "")
    if not main:
        raise DataError(
            "no metric of evaluate.metrics could be measured of the served engine: add one that "
            "needs nothing but answers, such as token_f1"
        )
    found["metric"] = report.facts(metrics[main])
    found["metrics"] = {name: report.facts(metrics[name]) for name in measured.samples}
    found["failures"] = dict(measured.failures)
    found["benchmarks"] = {name: asdict(figure) for name, figure in benchmarks.items()}
    if judged := resources.judge_report:
        found["judge"] = judged
    found |= served.figures(metrics, main, measured, models[TUNED], bootstrap)
    verdicts = gate.check(
        settings, metrics, models, "", bootstrap,
        decided=(SERVED,), named=served.describe(facts), benchmarks=benchmarks,
    )  # fmt: skip
    return found, measured, verdicts


def _benchmarks(config: Config, url: str, engine: Path, scratch: Path) -> "dict[str, Estimate]":
    """The results of evaluate.benchmarks on the served engine, by task.metric.

    Raises:
        MissingRuntime: the harness is not installed.
    """
    from pipeline.core.extras import require
    from pipeline.evaluation.benchmarks import EXTRA, run_benchmarks

    settings = config.evaluate
    if not settings.benchmarks:
        return {}
    extra = require(EXTRA, "evaluate.benchmarks", "leave it out")
    return run_benchmarks(
        extra.python,
        url,
        engine,
        model=config.model.name,
        tasks=settings.benchmarks,
        folder=settings.benchmark_tasks,
        limit=settings.benchmark_limit,
        concurrency=max(config.benchmark.concurrency),
        out=scratch,
    )


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


def _markdown(
    accuracy: Mapping[str, Any],
    failures: Sequence[str],
    overall: Mapping[str, float],
    figures: Sequence[Mapping[str, Any]],
) -> str:
    from pipeline.evaluation import served
    from pipeline.evaluation.report import interval, judge_words, main_metric, metric_of

    main = main_metric(accuracy)
    known = {name: metric_of(facts) for name, facts in accuracy["metrics"].items()}
    lines = ["# The served engine", "", f"Engine: {served.describe(accuracy)}.", ""]
    lines += [
        f"- {metric.title}: {interval(metric, accuracy[name])}"
        for name, metric in known.items()
        if name in accuracy
    ]
    if served.LESS_TUNED in accuracy:
        less = interval(main, accuracy[served.LESS_TUNED], signed=True)
        lines.append(f"- {main.title} less that of the tuned model: {less}")
    lines += [
        f"- benchmark {name}: {figure['value']:.4g} ({figure['low']:.4g} to {figure['high']:.4g}), "
        f"{figure['questions']} questions"
        for name, figure in accuracy["benchmarks"].items()
    ]
    lines += [f"- {name} was not measured: {why}" for name, why in accuracy["failures"].items()]
    if "judge" in accuracy:
        lines.append(f"- {judge_words(accuracy['judge'])}")
    lines += [
        f"- {accuracy['questions']} test questions, asked through HTTP as a client asks that sets "
        f"nothing; {accuracy['cut']} answers were cut at the limit of tokens, and "
        f"{accuracy['refused']} questions were refused as too long: both count as wrong.",
        f"- gate: {'; '.join(failures) or 'passed'}",
        "",
        "# Load",
        "",
    ]
    lines += [f"- {name.replace('_', ' ')}: {value:.4g}" for name, value in overall.items()]
    lines += ["", "All questions were asked before: an engine may have their prompts in a cache."]
    lines += ["", "| " + " | ".join(COLUMNS) + " |", "|" + " ---: |" * len(COLUMNS)]
    for load in figures:
        lines.append("| " + " | ".join(_short(load[key]) for key in COLUMNS.values()) + " |")
    return "\n".join(lines) + "\n"


def _show(accuracy: Mapping[str, Any], figures: Sequence[Mapping[str, Any]]) -> None:
    from rich.table import Table

    from pipeline.evaluation import served
    from pipeline.evaluation.report import interval, main_metric

    metric = main_metric(accuracy)
    get_console().print(
        f"served by {served.describe(accuracy)}: {metric.title} "
        f"{interval(metric, accuracy[metric.name])} of {accuracy['questions']} questions",
        soft_wrap=True,
    )
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
