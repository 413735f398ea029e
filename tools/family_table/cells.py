"""The hops of one family, by the pipeline's own stages in this process.

A cell is filled if its stages end with their proofs. It is empty if one ends with a documented
refusal of one line, which then says whose limit it is. Any other exception is a fault.
"""

from __future__ import annotations

import io
import json
import random
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.config.schema import load
from pipeline.core.artifact import open_artifact
from pipeline.core.errors import MissingRuntime, PipelineError
from pipeline.models.architecture import Shape, read_shape
from pipeline.optimization.formats import FORMATS
from pipeline.orchestration.compose import compose
from pipeline.orchestration.runner import run_stage

TRAINING = ("lora", "dora", "sft")
ENGINES = ("onnxruntime", "hf", "vllm", "trtllm")
# The columns of the table, in the order of the pipeline.
HOPS = ("import", *TRAINING, "merge", *FORMATS, "qnemo", "unified", *ENGINES, "served")

_SETTINGS = (
    "tracking.enabled=false",
    "data=files",
    "data.train=[train.jsonl]",
    "data.test=[test.jsonl]",
    "prepare.validation_share=0.2",
    "finetune.max_steps=2",
    "finetune.warmup_steps=0",
    "finetune.global_batch_size=4",
    "finetune.micro_batch_size=2",
    "finetune.adapter.rank=4",
    "finetune.adapter.alpha=8",
    "finetune.learning_rate=1e-2",
    "finetune.min_learning_rate=1e-3",
    "quantize.calibration.rows=8",
    "quantize.calibration.batch_size=4",
    "engine.max_seq_len=96",
    "engine.max_input_len=64",
    "engine.max_batch_size=2",
    "evaluate.max_new_tokens=16",
)
_QUESTION = "How do I open an account?"
_ANSWER_TOKENS = 12


@dataclass(frozen=True)
class Cell:
    """A hop of a family. figure: of its proof, in words. refusal: the line, if it was refused."""

    figure: str = ""
    refusal: str = ""
    code: int = 0


class Fault(Exception):
    """A command that neither succeeded nor refused in one line."""


def run_family(name: str, model: Path, folder: Path) -> dict[str, Cell]:
    """Every cell of a family. model: its tiny model. folder: for artifacts.

    Raises:
        Fault: a command ended with a traceback, or with more than one line.
    """
    return dict(_cells(_Runs(name, model, folder)))


def main_path(name: str, model: Path, folder: Path) -> dict[str, Cell]:
    """The cells without which the others mean nothing: import, LoRA, merge, FP8, export, an engine.

    As `run_family` otherwise.
    """
    return dict(_cells(_Runs(name, model, folder), short=True))


class _Runs:
    """The pipeline's commands with a family's settings."""

    def __init__(self, name: str, model: Path, folder: Path) -> None:
        self.artifacts = folder / "artifacts"
        place = ["model=local", f"model.name={name}", f"model.path={model}"]
        self._settings = [*place, f"data.folder={folder / 'data'}", *_SETTINGS]
        _write_rows(folder / "data")

    @property
    def shape(self) -> Shape:
        return read_shape(self.artifacts / "merge")

    def __call__(self, *stages: str, given: Sequence[str] = ()) -> Cell:
        """Run stages one after another until one is refused."""
        tree = compose([f"artifacts={self.artifacts}", *self._settings, *given])
        for stage in stages:
            try:
                with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                    run_stage(stage, tree, load(tree))
            except PipelineError as error:
                line, *more = str(error).splitlines()
                # Where another machine is needed, the commands for it follow the line.
                if more and not isinstance(error, MissingRuntime):
                    raise Fault(f"stage={stage} refuses in several lines: {error}") from error
                return Cell(refusal=f"{type(error).__name__}: {line}", code=error.exit_code)
        return Cell()

    def metrics(self, stage: str) -> dict[str, float]:
        return dict(open_artifact(self.artifacts / stage).manifest.metrics)


def _cells(run: _Runs, short: bool = False) -> Iterator[tuple[str, Cell]]:
    imported = run("prepare", "import")
    yield "import", _proven(imported, run, "import", "max_abs_logit_difference")
    if imported.refusal:
        return
    for method in ("lora",) if short else ("sft", "dora", "lora"):
        trained = run("finetune", "merge", given=[f"finetune={method}"])
        yield method, _proven(trained, run, "merge", "max_abs_logit_difference")
    if trained.refusal:
        return
    yield "merge", Cell(figure=f"{run.metrics('merge')['rounding_loss']:.0e}")
    formats = ["fp8"] if short else [*FORMATS]
    formats.sort(key=lambda format: format == "fp8")  # last, for the engines
    for format in formats:
        made = run("quantize", "export", given=[f"quantize={format}"])
        yield format, _proven(made, run, "export", "largest_excess/hf")
    if made.refusal:
        return
    exported = open_artifact(run.artifacts / "export")
    for form, hop in (("qnemo", "qnemo"), ("hf", "unified")):
        if form in exported.manifest.proof:
            yield hop, Cell(figure=f"{exported.manifest.metrics[f'largest_excess/{form}']:.0e}")
        else:
            yield hop, Cell(refusal=str(run.shape.no_qnemo), code=3)
    for engine in ("hf",) if short else (*(e for e in ENGINES if e != "hf"), "hf"):
        precision = "fp32" if engine in ("onnxruntime", "hf") else "auto"
        built = run("build", given=[f"engine={engine}", f"engine.precision={precision}"])
        yield engine, built
    if built.refusal:
        return
    yield "served", _serve(run.artifacts)


def _proven(cell: Cell, run: _Runs, stage: str, metric: str) -> Cell:
    if cell.refusal:
        return cell
    return Cell(figure=f"{run.metrics(stage)[metric]:.0e}")


def _serve(artifacts: Path) -> Cell:
    """One question to the built engine, through the server's application.

    Raises:
        Fault: the answer is not the one of the merged model, token by token.
    """
    from pipeline.engines.opening import open_engine
    from pipeline.models import hf_model
    from pipeline.models.chat.renderer import Chat
    from pipeline.serving.app import create_app
    from tests.unit.serving.asgi import ask

    messages = [{"role": "user", "content": _QUESTION}]
    request = {"messages": messages, "temperature": 0, "max_tokens": _ANSWER_TOKENS}
    served = open_engine(artifacts / "build", max_queue=4)
    try:
        assert isinstance(served.chat, Chat)
        app = create_app(served.engine, served.chat, model="tiny", slots=1)
        answer = ask(app, "POST", "/v1/chat/completions", json={"model": "tiny", **request})
        if answer.status_code != 200:
            raise Fault(f"the server answers {answer.status_code}: {answer.text}")
        model = hf_model.load_model(artifacts / "merge", dtype="float32")
        ids = hf_model.greedy(
            model,
            served.chat.prompt(messages),
            max_new_tokens=_ANSWER_TOKENS,
            stop_ids=served.chat.stop_ids,
        )
        wanted = served.chat.decode(ids)
    finally:
        served.engine.close()
    found = answer.json()["choices"][0]["message"]["content"]
    if found != wanted:
        raise Fault(f"the server answers {found!r}, and transformers {wanted!r}")
    return Cell(figure="same tokens")


def _write_rows(folder: Path) -> None:
    """Forty conversations to train on and four to test with, all different."""
    folder.mkdir(parents=True)
    words = "wire account card loan open fee limit branch rate transfer close order".split()
    draw = random.Random(0)
    rows = []
    for number in range(44):
        asked, said = draw.sample(words, 4), draw.sample(words, 3)
        messages = [
            {"role": "user", "content": f"How {' '.join(asked)} {number}?"},
            {"role": "assistant", "content": f"Call {' '.join(said)} {number * 7}."},
        ]
        rows.append(json.dumps({"messages": messages}) + "\n")
    (folder / "train.jsonl").write_text("".join(rows[4:]))
    (folder / "test.jsonl").write_text("".join(rows[:4]))


def as_json(cells: dict[str, Cell]) -> dict[str, Any]:
    return {hop: {k: v for k, v in asdict(cell).items() if v} for hop, cell in cells.items()}
