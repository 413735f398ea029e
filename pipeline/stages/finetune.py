"""NeMo checkpoint and dataset → adapter (lora, dora) or whole model (sft), on Megatron-Core.

Trains with NeMo on Megatron-Core, on the assistant's tokens only. If it is killed at any step and
started again, it resumes from the newest checkpoint in `.scratch/` and ends with the same weights.
With finetune.parallel.processes over 1 it starts that many processes, one for each GPU.
"""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from pipeline.config.finetune import OBJECTIVES, FinetuneConfig, objectives_of
from pipeline.config.schema import Config
from pipeline.core import hardware
from pipeline.core.artifact import SCRATCH, Artifact, Outcome, sha256_of_json
from pipeline.core.console import get_console
from pipeline.core.errors import DataError
from pipeline.core.hardware import GIB
from pipeline.core.monkeypatch import other_versions
from pipeline.core.stage import NEMO, Stage
from pipeline.data.dataset import read_split
from pipeline.models.architecture import Shape, read_shape
from pipeline.models.files import copy_assets
from pipeline.planner.preflight import check_machine, less_memory, planned_memory
from pipeline.training.batches import SampleOrder, TokenRows
from pipeline.training.best_weights import BestWeights
from pipeline.training.job import Checkpoints, Job
from pipeline.training.length import Length, ends_first, resolved
from pipeline.training.nemo.patches.records import PATCHES
from pipeline.training.preference import PreferenceRows, Rows
from pipeline.training.progress import show_progress, write_loss_curve
from pipeline.training.settings_checks import check, check_validation_rows
from pipeline.training.validation import best, kept, why_kept

STAGE = Stage(
    version=2,
    libraries=NEMO,
    optional_libraries=("transformer-engine", "triton"),
    less_memory="lower finetune.micro_batch_size",
)


ASSETS = "hf"  # config.json and tokenizer files, in every NeMo checkpoint


def run(config: Config, inputs: Mapping[str, Artifact], out: Path) -> Outcome:
    """Fine-tune the imported base on the prepared rows. Writes weights/ and context/.

    Raises:
        ConfigError: settings that contradict one another or the model.
        DataError: no row to train on, or one longer than the model's positions.
        PipelineError: the loss is not finite, or a process died. ResourceError: memory ran out or
            will. MissingRuntime: FP8 on a GPU without it. Busy: others use the GPU's memory.
    """
    base = inputs["import"].require("nemo_checkpoint").path
    dataset = inputs["prepare"].require("dataset").path
    shape = read_shape(base / ASSETS)
    check(config.finetune, shape, nodes=config.launcher.nodes)
    _report_patches(config.finetune.patches)
    scratch = out / SCRATCH
    for leftover in ("weights", "context"):
        shutil.rmtree(out / leftover, ignore_errors=True)
    train = _rows(dataset, "train", shape, config.finetune.objective)
    validation = _rows(dataset, "validation", shape, config.finetune.objective)
    if not len(train):
        raise DataError(f"{dataset} has no row to train on: see its rejected.jsonl for the reasons")
    settings, length = _length(config, shape, rows=len(train), validation=len(validation))
    train.save(scratch / "train")
    validation.save(scratch / "validation")
    copy_assets(base / ASSETS, out / ASSETS)
    job = Job(
        settings=settings,
        hf=out / ASSETS,
        weights=base,
        train_rows=scratch / "train",
        validation_rows=scratch / "validation" if len(validation) else None,
        scratch=scratch / "checkpoints",
        out=out,
        seed=config.seed,
        max_length=shape.max_positions,
        nodes=config.launcher.nodes,
        made_from=sha256_of_json([train.sha256, inputs["import"].manifest.digest]),
    )
    longest = int(train.lengths.max()) - 1
    check_machine(job, shape, longest=longest)
    job = replace(job, less_memory=less_memory(job, shape, longest=longest))

    from pipeline.training.workers import train_in_processes

    checkpoints = Checkpoints(job.scratch, job.identity)
    found = list(out.parent.glob(f"{out.name.partition('-')[0]}-*/{SCRATCH}/checkpoints"))
    checkpoints.adopt(found)
    _adopt_best(job, checkpoints, found)
    done = len(checkpoints.curve())
    with show_progress(length, done) as report:
        trained = train_in_processes(job, report)
    curve = trained.curve
    supervised = settings.objective == "sft"
    write_loss_curve(
        out,
        curve,
        title=f"Fine-tuning ({settings.method}{'' if supervised else f', {settings.objective}'})",
        unit="nats a token" if supervised else "mean of rows",
    )
    order = SampleOrder(train.lengths, settings.global_batch_size, job.seed)
    steps, result = len(curve), kept(settings, curve)
    tokens = [train.tokens(order.rows(step)) for step in range(steps)]
    seconds = trained.seconds
    metrics = {
        "train_loss": result.loss,
        "steps": steps,
        "epochs": length.epoch(steps),
        "kept_step": result.step,
        "tokens": sum(tokens),
        "tokens_per_second": sum(tokens[trained.resumed_from :]) / seconds,
        "trainable_parameters": trained.trainable_parameters,
        "training_seconds": seconds,
        "save_seconds": trained.save_seconds,
    }
    if trained.gpu_memory:  # to compare with what the planner expected
        metrics["gpu_memory_gib"] = trained.gpu_memory / GIB
        metrics["planned_gpu_memory_gib"] = planned_memory(job, shape, longest=longest) / GIB
    if (loss := result.validation_loss) is not None:
        metrics["validation_loss"] = loss
    metrics |= result.figures
    why = why_kept(settings, curve, job.steps)
    if steps < job.steps or result.step < steps:
        get_console().print(why[:1].upper() + why[1:], markup=False, soft_wrap=True)
    proof = {
        "length": str(replace(length, steps=steps)),
        "kept": why,
        "rows_sha256": train.sha256,
        "sample_order_sha256": order.sha256(steps),
        "resumed_from_step": trained.resumed_from,
    }
    kind = "nemo_checkpoint" if settings.method == "sft" else "nemo_adapter"
    return Outcome(kind, metrics, proof)


def _length(
    config: Config, shape: Shape, *, rows: int, validation: int
) -> tuple[FinetuneConfig, Length]:
    """The settings with steps as numbers, and the run's length, which is reported.

    rows, validation: rows to train on and to validate on.
    """
    given = config.finetune
    check(given, shape, nodes=config.launcher.nodes, rows=rows)
    check_validation_rows(given, validation)
    settings = resolved(given, rows)
    assert settings.max_steps is not None
    length = Length(settings.max_steps, settings.global_batch_size, rows)
    get_console().print(f"{length}{ends_first(given, rows)}", markup=False, soft_wrap=True)
    return settings, length


def _adopt_best(job: Job, checkpoints: Checkpoints, found: list[Path]) -> None:
    """With finetune.keep=best, have the best weights up to the newest checkpoint, or start anew."""
    point = best(checkpoints.curve()) if job.settings.keep == "best" else None
    if point is None:
        return
    weights = BestWeights(job.scratch, job.identity)
    weights.adopt(found)
    if not weights.path(point.step).is_dir():
        get_console().print(
            f"training starts anew: the weights of step {point.step}, the best ones, are gone"
        )
        checkpoints.discard()


def _report_patches(patches: str) -> None:
    """Say which patches are off, and warn of libraries that the patches were not written for."""
    console = get_console()
    if patches == "none":
        console.print(
            "finetune.patches=none: only the required patches are applied (see docs/patches.md)"
        )
    installed = hardware.installed_versions({patch.distribution for patch in PATCHES})
    if others := other_versions(PATCHES, installed):
        console.print(
            f"[yellow]Patches were written for other versions[/]: {others}. Run `make patches` to "
            "compare the code, or install the locked versions"
        )


def _rows(dataset: Path, split: str, shape: Shape, objective: str) -> Rows:
    rows = read_split(dataset, split)
    wanted = OBJECTIVES[objective].rows
    for row in rows:
        if row.kind != wanted:
            raise DataError(
                f"{dataset} was made for finetune.objective={objectives_of(row.kind)}, and "
                f"finetune.objective={objective} was given: run stage=prepare with "
                f"finetune.objective={objective}, or set finetune.objective to what it was made for"
            )
        for ids, _ in row.sides:
            if len(ids) > shape.max_positions:
                raise DataError(
                    f"{row.source} has {len(ids)} tokens and the model {shape.max_positions} "
                    "positions: lower prepare.max_length and run stage=prepare again"
                )
    if wanted == "pairs":
        return PreferenceRows.of_pairs(row.sides for row in rows)
    if wanted == "labels":
        answers = [(row.sides[0], int(row.label or 0)) for row in rows]
        return PreferenceRows.of_labels(answers, max_length=shape.max_positions)
    return TokenRows.of(row.sides[0] for row in rows)
