"""Dataset and models → report: how well base, tuned and simulated formats answer; the gate.

Every model answers the questions of the test split greedily, and its loss on the expected answers
is measured. Figures have 95 % intervals; a format is compared with the tuned model question by
question. Formats are simulated here: weights and activations are rounded as the format rounds them,
and computed in the model's own type. That serves to choose a format before it is exported. What the
engine answers is measured by stage=benchmark. The gate decides whether the tuned model passes, in
the format that is exported. For formats that are only compared (quantize.compare) the report says
which ones the gate would refuse.
"""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipeline.config.evaluate import BASE, FORMAT, TUNED
from pipeline.config.schema import Config
from pipeline.core.artifact import Artifact, Outcome
from pipeline.core.console import get_console, progress
from pipeline.core.errors import DataError
from pipeline.core.stage import Stage
from pipeline.data.dataset import Row, read_split
from pipeline.evaluation import findings, gate, page, predictions, slices
from pipeline.evaluation import report as evaluation_report
from pipeline.evaluation.confidence import Estimate
from pipeline.evaluation.measure import Bootstrap, Measured, measure
from pipeline.evaluation.metrics import Answers, Metric
from pipeline.evaluation.resources import VERDICTS, Resources, metrics_of
from pipeline.models.chat.renderer import Chat
from pipeline.models.chat.template_consistency import shared_chat
from pipeline.optimization.formats import FORMATS

STAGE = Stage(
    version=4,
    libraries=("torch", "transformers", "nvidia-modelopt", "peft", "tokenizers", "jinja2", "numpy",
               "rapidfuzz", "sacrebleu"),
    optional_libraries=("sentence-transformers", "jsonschema", "httpx"),
    less_memory="lower evaluate.batch_size",
)  # fmt: skip
WINDOW = 1024  # most tokens of a window of evaluate.general_text


@dataclass(frozen=True)
class Result:
    """A model's answers and what was measured of them.

    confidences: how sure the model was of each answer.
    """

    measured: Measured
    confidences: Sequence[float]
    figures: dict[str, Estimate]
    seconds: float

    @property
    def answers(self) -> Answers:
        return self.measured.answers


@dataclass
class _Evaluation:
    """What every model is measured with."""

    config: Config
    chat: Chat
    rows: Sequence[Row]
    resources: Resources
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    windows: list[list[int]] = field(default_factory=list)
    base: Sequence[str] | None = None  # the base model's answers, once they are there

    @property
    def bootstrap(self) -> Bootstrap:
        return Bootstrap(self.config.evaluate.bootstrap_samples, self.config.seed)


def run(config: Config, inputs: Mapping[str, Artifact], out: Path) -> Outcome:
    """Answer the test questions with each model; write report.json, report.md, report.html,
    predictions.jsonl and accuracy.png.

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
    resources = Resources(config.evaluate, out, seed=config.seed)
    work = _Evaluation(config, chat, rows, resources, metrics_of(config.evaluate))
    work.windows = _windows(chat, config)
    results: dict[str, Result] = {}
    models = _loaders(config.model.path, tuned, quantized)
    with progress() as bar:
        task = bar.add_task("evaluate", total=len(models) * len(rows))
        for name, load in models.items():
            bar.update(task, description=f"evaluate {name}")
            results[name] = _evaluate(load, work, advance=lambda n: bar.update(task, advance=n))
            if name == BASE:
                work.base = results[name].answers.texts
    report = _report(work, results, shipped, method(tuned), long)
    evaluation_report.write(report, out)
    models_measured = {name: result.measured for name, result in results.items()}
    records = predictions.records(rows, models_measured, results[TUNED].confidences)
    predictions.write(records, out)
    _write_page(report, work, results, records, out)
    evaluation_report.show(report)
    metrics = {
        f"{figure}/{evaluation_report.key(name)}": estimate.value
        for name, result in results.items()
        for figure, estimate in result.figures.items()
    }
    metrics |= {f"seconds/{name}": result.seconds for name, result in results.items()}
    metrics["questions"] = float(len(rows))
    failure = "; ".join(report["gate"]["failures"]) or None
    measured = (VERDICTS,) if (out / VERDICTS).exists() else ()
    return Outcome("report", metrics, proof=report, failure=failure, measured=measured)


def files(config: Config) -> list[Path]:
    """Files that decide what is measured."""
    return config.evaluate.files()


def method(tuned: Path) -> str:
    """What was trained, "adapter" or "full"."""
    return "adapter" if (tuned / "adapter").is_dir() else "full"


def _report(
    work: _Evaluation, results: Mapping[str, Result], shipped: str, method: str, long: int
) -> dict[str, Any]:
    settings, metrics, bootstrap = work.config.evaluate, work.metrics, work.bootstrap
    models = {name: result.measured for name, result in results.items()}
    main, tuned = metrics[settings.main], results[TUNED]
    differences = {
        name: difference
        for name, measured in models.items()
        if name != TUNED
        and main.by_question
        and (difference := bootstrap.difference(main, measured, models[TUNED])) is not None
    }
    verdicts = gate.check(settings, metrics, models, shipped, bootstrap, decided=(TUNED, FORMAT))
    more: dict[str, Any] = {}
    if judged := work.resources.judge_report:
        more["judge"] = judged
    if found := findings.calibration(main, tuned.measured, tuned.confidences):
        more["calibration"] = found
    return evaluation_report.build(
        metrics,
        main.name,
        {name: result.figures for name, result in results.items()},
        differences,
        verdicts,
        gate.check_beyond(settings, metrics, models, shipped, bootstrap),
        questions=len(work.rows),
        method=method,
        beyond_limit=long,
        cut={name: sum(result.answers.cut) for name, result in results.items()},
        failures={
            name: why for measured in models.values() for name, why in measured.failures.items()
        },
        slices=_slices(main, models, bootstrap),
        **more,
    )


def _slices(
    main: Metric, models: Mapping[str, Measured], bootstrap: Bootstrap
) -> list[dict[str, Any]]:
    """The main metric of each model in the largest slices."""
    if not main.by_question:
        return []
    found = []
    parts = list(slices.by_slice(models[TUNED].answers.asked).items())
    for (kind, name), places in parts[: evaluation_report.MOST_SLICES]:
        estimates = {
            model: value
            for model, measured in models.items()
            if (value := bootstrap.estimate(main, measured, places)) is not None
        }
        entry = {"kind": kind, "name": name, "questions": len(places)}
        found.append({**entry, "models": {m: asdict(value) for m, value in estimates.items()}})
    return found


def _write_page(
    report: Mapping[str, Any],
    work: _Evaluation,
    results: Mapping[str, Result],
    records: Sequence[Mapping[str, Any]],
    out: Path,
) -> None:
    main, tuned = work.metrics[work.config.evaluate.main], results[TUNED].measured
    places = findings.worst(main, tuned, work.config.evaluate.worst_rows)
    values = tuned.samples[main.name].values if places else []
    text = page.page(
        report,
        title=f"Evaluation of {work.config.model.name}",
        worst=[{**records[place], "value": values[place]} for place in places],
        confused=findings.confusions(tuned),
    )
    (out / page.NAME).write_text(text, encoding="utf-8")


def _windows(chat: Chat, config: Config) -> list[list[int]]:
    """evaluate.general_text as windows of tokens, its passages apart; none without it.

    Passages are what empty lines part; a longer one than a window is cut. Intervals come from
    resampling the windows, which a text of one window could not have.

    Raises:
        DataError: the file cannot be read, or holds fewer than two tokens.
    """
    file = config.evaluate.general_text
    if file is None:
        return []
    try:
        passages = re.split(r"\n[ \t]*\n", file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"evaluate.general_text={file} cannot be read ({error})") from error
    windows = [
        window
        for passage in passages
        if (ids := chat.encode(passage.strip()))
        for start in range(0, len(ids), WINDOW)
        if len(window := ids[start : start + WINDOW]) > 1
    ]
    if not windows:
        raise DataError(f"evaluate.general_text={file} holds fewer than two tokens")
    return windows


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
    load: Callable[[], Any], work: _Evaluation, *, advance: Callable[[int], None]
) -> Result:
    from pipeline.evaluation import generation

    started = time.perf_counter()
    chat, settings, model = work.chat, work.config.evaluate, load()
    answers = generation.answer(
        model,
        [question(row) for row in work.rows],
        stop_ids=chat.stop_ids,
        max_new_tokens=settings.max_new_tokens,
        batch_size=settings.batch_size,
        advance=advance,
    )
    # Windows are as long as the model's positions at most.
    most = min(WINDOW, model.config.max_position_embeddings)
    windows = [w[i : i + most] for w in work.windows for i in range(0, len(w), most)]
    windows = [window for window in windows if len(window) > 1]
    losses = generation.text_losses(model, windows, batch_size=settings.batch_size)
    found = Answers(
        texts=[chat.answer([i for i in a.ids if i not in chat.stop_ids]) for a in answers],
        expected=[str(row.answer) for row in work.rows],
        cut=[not (a.ids and a.ids[-1] in chat.stop_ids) for a in answers],
        losses=[a.loss for a in answers],
        tokens=[float(a.tokens) for a in answers],
        general_losses=losses,
        general_tokens=[float(len(window) - 1) for window in windows],
        asked=[slices.asked_of(row) for row in work.rows],
        base=work.base,
    )
    measured = measure(work.metrics, found, work.resources)
    figures = {
        name: estimate
        for name, metric in work.metrics.items()
        if (estimate := work.bootstrap.estimate(metric, measured)) is not None
    }
    seconds = time.perf_counter() - started
    return Result(measured, [a.confidence for a in answers], figures, seconds)


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
