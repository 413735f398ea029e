"""Dataset and models → report: how well base, tuned and simulated formats answer; the gate.

Every model answers the questions of the test split greedily, and its loss on the expected answers
is measured. Figures have 95 % intervals; a format is compared with the tuned model question by
question. Formats are simulated here: weights and activations are rounded as the format rounds them,
and computed in the model's own type. That serves to choose a format before it is exported. What the
engine answers is measured by stage=benchmark. The gate decides whether the tuned model passes, in
the format that is exported. For formats that are only compared (quantize.compare) the report says
which ones the gate would refuse.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config.schema import Config
from pipeline.core.artifact import Artifact, Outcome
from pipeline.core.console import get_console, progress
from pipeline.core.errors import DataError
from pipeline.core.stage import Stage
from pipeline.data.dataset import Row, read_split
from pipeline.evaluation import report as evaluation_report
from pipeline.evaluation.confidence import Estimate, estimate, paired_difference
from pipeline.evaluation.gate import BASE, TUNED, drops, refusals
from pipeline.evaluation.metrics import METRICS, Answers, gate_metric
from pipeline.models.chat.renderer import Chat
from pipeline.models.chat.template_consistency import shared_chat
from pipeline.optimization.formats import FORMATS

STAGE = Stage(
    version=2,
    libraries=("torch", "transformers", "nvidia-modelopt", "peft", "tokenizers", "jinja2", "numpy"),
    less_memory="lower evaluate.batch_size",
)


@dataclass(frozen=True)
class Result:
    """A model's answers and its figures, by the names of metrics."""

    answers: Answers
    figures: dict[str, Estimate]
    seconds: float


def run(config: Config, inputs: Mapping[str, Artifact], out: Path) -> Outcome:
    """Answer the test questions with each model; write report.json, report.md, predictions.jsonl
    and accuracy.png.

    Raises:
        DataError: there are no test questions, or one is longer than a model's positions.
        PipelineError: a model's outputs are not finite.
    """
    dataset = inputs["prepare"].require("dataset")
    tuned = inputs["merge"].require("hf_checkpoint").path
    quantized = inputs["quantize"].require("quantized").path
    shipped = inputs["quantize"].manifest.config["quantize"]["format"]
    chat = shared_chat(dataset, tuned)
    rows = read_split(dataset.path, "test")
    if not rows:
        raise DataError(f"{dataset.path} has no test questions: set data.test, run stage=prepare")

    most = config.evaluate.max_new_tokens
    if long := sum(len(question(row).expected) > most for row in rows):
        get_console().print(
            f"[yellow]{long} of {len(rows)} expected answers have more than {most} tokens, so no "
            "model can give them:[/] raise evaluate.max_new_tokens",
            soft_wrap=True,
        )
    results: dict[str, Result] = {}
    models = _loaders(config.model.path, tuned, quantized)
    with progress() as bar:
        task = bar.add_task("evaluate", total=len(models) * len(rows))
        for name, load in models.items():
            bar.update(task, description=f"evaluate {name}")
            results[name] = _evaluate(
                load, chat, rows, config, advance=lambda n: bar.update(task, advance=n)
            )
    differences = {
        name: _difference(result, results[TUNED], config)
        for name, result in results.items()
        if name != TUNED
    }
    method = "adapter" if (tuned / "adapter").is_dir() else "full"
    metric = gate_metric()
    scores = {name: result.figures[metric.name].value for name, result in results.items()}
    gate = config.evaluate.gate
    failures = refusals(gate, method, scores, shipped)
    report = evaluation_report.build(
        {name: result.figures for name, result in results.items()},
        differences,
        failures,
        drops(gate, scores, set(scores) - {shipped}),
        questions=len(rows),
        method=method,
        beyond_limit=long,
        cut={name: sum(result.answers.cut) for name, result in results.items()},
    )
    evaluation_report.write(report, out)
    _write_predictions(out / "predictions.jsonl", rows, results)
    evaluation_report.show(report)
    metrics = {
        f"{figure}/{evaluation_report.key(name)}": estimate.value
        for name, result in results.items()
        for figure, estimate in result.figures.items()
    }
    metrics |= {f"seconds/{name}": result.seconds for name, result in results.items()}
    metrics["questions"] = float(len(rows))
    return Outcome("report", metrics, proof=report, failure="; ".join(failures) or None)


def _loaders(base: Path, tuned: Path, quantized: Path) -> dict[str, Callable[[], Any]]:
    """How to open each model, in the order of the report."""
    from pipeline.models import hf_model
    from pipeline.optimization import ptq as modelopt

    modelopt.modelopt()

    def plain(folder: Path) -> Callable[[], Any]:
        return lambda: hf_model.load_model(folder, dtype=modelopt.compute_dtype(folder))

    def rounded(folder: Path) -> Callable[[], Any]:
        def load() -> Any:
            model = modelopt.load(folder)
            modelopt.fold_weights(model)
            return model

        return load

    loaders = {BASE: plain(base), TUNED: plain(tuned)}
    folders = sorted(file.parent for file in quantized.glob("*/config.json"))
    return loaders | {
        folder.name: rounded(folder) if FORMATS[folder.name].quantized else plain(folder)
        for folder in folders
    }


def _evaluate(
    load: Callable[[], Any],
    chat: Chat,
    rows: Sequence[Row],
    config: Config,
    *,
    advance: Callable[[int], None],
) -> Result:
    from pipeline.evaluation import generation

    started = time.perf_counter()
    answers = generation.answer(
        load(),
        [question(row) for row in rows],
        stop_ids=chat.stop_ids,
        max_new_tokens=config.evaluate.max_new_tokens,
        batch_size=config.evaluate.batch_size,
        advance=advance,
    )
    found = Answers(
        texts=[chat.answer([i for i in a.ids if i not in chat.stop_ids]) for a in answers],
        expected=[str(row.answer) for row in rows],
        cut=[not (a.ids and a.ids[-1] in chat.stop_ids) for a in answers],
        losses=[a.loss for a in answers],
        tokens=[float(a.tokens) for a in answers],
    )
    figures = score(found, config)
    return Result(found, figures, time.perf_counter() - started)


def score(answers: Answers, config: Config) -> dict[str, Estimate]:
    """Every metric of a model's answers."""
    samples, seed = config.evaluate.bootstrap_samples, config.seed
    return {
        name: estimate(metric, answers, samples=samples, seed=seed)
        for name, metric in METRICS.items()
    }


def question(row: Row) -> "Any":
    """The tokens of the prompt, and those of the expected answer.

    Raises:
        DataError: the rendered conversation does not begin with the row's prompt.
    """
    from pipeline.evaluation.generation import Question

    prompt = list(row.prompt_ids or ())
    rest, mask = row.input_ids[len(prompt) :], row.loss_mask[len(prompt) :]
    if not prompt or row.input_ids[: len(prompt)] != prompt or 1 not in mask:
        raise DataError(
            f"{row.source}: the rendered conversation does not begin with the prompt: the chat "
            "template must render the generation prompt as it renders an assistant's turn"
        )
    # The template may add text after the end of the turn, which the model does not generate.
    return Question(prompt, rest[: len(mask) - mask[::-1].index(1)])


def _difference(ours: Result, tuned: Result, config: Config) -> Estimate:
    """The gate's metric of a model, less that of the tuned model."""
    values = gate_metric().values
    return paired_difference(
        values(ours.answers),
        values(tuned.answers),
        samples=config.evaluate.bootstrap_samples,
        seed=config.seed,
    )


def _write_predictions(file: Path, rows: Sequence[Row], results: Mapping[str, Result]) -> None:
    with file.open("w", encoding="utf-8") as stream:
        for place, row in enumerate(rows):
            record = {
                "question": row.messages[-2]["content"],
                "expected": row.answer,
                "answers": {name: result.answers.texts[place] for name, result in results.items()},
                "cut": [name for name, result in results.items() if result.answers.cut[place]],
                "source": row.source,
            }
            stream.write(json.dumps(record, ensure_ascii=False) + "\n")
