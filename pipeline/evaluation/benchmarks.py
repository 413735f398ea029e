"""lm-evaluation-harness on a served engine: its tasks, and their results.

The harness runs in a process, in the environment of the extra `lm-eval` if there is one. Tasks that
generate are asked as chats, others through /v1/completions with the log-probabilities of prompts,
which not every engine gives. A task whose data is not here, or which the engine cannot answer,
costs a line, and the others are kept.
"""

import json
import math
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.core.console import get_console
from pipeline.core.errors import MissingRuntime, PipelineError
from pipeline.evaluation.confidence import Estimate

EXTRA = "lm-eval"
HOURS = 24
_INTERVAL = 1.959964  # standard errors on each side of a 95 % interval
_CHAT, _TEXT = ("local-chat-completions", "chat/completions"), ("local-completions", "completions")


def run_benchmarks(
    python: Path,
    url: str,
    engine: Path,
    *,
    model: str,
    tasks: Sequence[str],
    folder: Path | None,
    limit: int | None,
    concurrency: int,
    out: Path,
) -> dict[str, Estimate]:
    """The results of tasks, by task.metric.

    Args:
        python: of an environment that has lm_eval.
        url: of the served engine, as http://127.0.0.1:8000/v1. engine: its folder, with the
            tokenizer. model: its name.
        folder: with task files of the user's own.
        limit: questions of a task.
        out: where logs are written.
    """
    found: dict[str, Estimate] = {}
    for task in tasks:
        try:
            found |= _task(python, url, engine, model, task, folder, limit, concurrency, out)
        except PipelineError as error:
            get_console().print(
                f"[yellow]benchmark {task} is not measured:[/] {error}",
                soft_wrap=True,
                highlight=False,
            )
    return found


def _task(
    python: Path,
    url: str,
    engine: Path,
    model: str,
    task: str,
    folder: Path | None,
    limit: int | None,
    concurrency: int,
    out: Path,
) -> dict[str, Estimate]:
    """One task: as a chat, or through completions if it needs log-probabilities."""
    why = ""
    for kind, path in (_CHAT, _TEXT):
        place = out / f"{task}-{kind}".replace("/", "-")
        arguments = (
            f"model={model},base_url={url}/{path},num_concurrent={concurrency},"
            f"tokenizer={engine},max_retries=3"
        )
        command = [str(python), "-m", "lm_eval", "run", "--model", kind, "--tasks", task,
                   "--model_args", arguments, "--apply_chat_template",
                   "--output_path", str(place)]  # fmt: skip
        if folder is not None:
            command += ["--include_path", str(folder)]
        if limit is not None:
            command += ["--limit", str(limit)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=HOURS * 3600, check=False,
                env={**os.environ, "HF_DATASETS_TRUST_REMOTE_CODE": "0", "OPENAI_API_KEY": "none"},
            )  # fmt: skip
        except OSError as error:
            raise MissingRuntime(
                f"{python} cannot be run ({error}): run `make setup EXTRA={EXTRA}`"
            ) from error
        except subprocess.TimeoutExpired:
            raise PipelineError(f"it did not end within {HOURS} hours") from None
        (out / f"{place.name}.log").write_text(f"{done.stdout}\n{done.stderr}")
        if done.returncode == 0:
            return results(place, task)
        why = _reason(done.stderr)
        if "loglikelihood" not in done.stderr.lower():
            break
    raise PipelineError(f"{why} (evaluate.benchmarks, evaluate.benchmark_tasks)")


def results(folder: Path, task: str) -> dict[str, Estimate]:
    """The figures in the results of the harness, with intervals from their standard errors.

    Raises:
        PipelineError: there are none.
    """
    try:
        (file,) = folder.rglob("results_*.json")
        report = json.loads(file.read_text())
        figures = dict(_figures(task, report))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise PipelineError(f"the harness wrote no results ({error})") from error
    if not figures:
        raise PipelineError("the harness gave no figure")
    return figures


def _figures(task: str, report: Mapping[str, Any]) -> Iterator[tuple[str, Estimate]]:
    """Of the task itself, or of each task of a group."""
    for name, figures in report["results"].items():
        counted = report.get("n-samples", {}).get(name, {}).get("effective", 0)
        for key, value in figures.items():
            metric, _, filtered = key.partition(",")
            if not isinstance(value, int | float) or metric.endswith("_stderr") or not filtered:
                continue
            error = figures.get(f"{metric}_stderr,{filtered}")
            reach = _INTERVAL * error if isinstance(error, int | float) else 0.0
            reach = 0.0 if math.isnan(reach) else reach
            full = f"{name}.{metric}" + ("" if filtered == "none" else f".{filtered}")
            yield full, Estimate(float(value), value - reach, value + reach, int(counted))


def _reason(text: str) -> str:
    """The last line of an error that says something."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    said = [line for line in lines if "Error" in line or "error" in line]
    return " ".join((said or lines or ["it failed and said nothing"])[-1].split())[:300]
