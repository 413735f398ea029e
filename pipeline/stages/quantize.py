"""HF checkpoint and dataset → low precision with ModelOpt, calibrated on the dataset.

Every format is calibrated on the same training rows and saved. A saved model must open again with
the same outputs. stage=export packs the weights for a runtime.
"""

import math
import random
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config.schema import Config
from pipeline.core.artifact import Artifact, Outcome
from pipeline.core.console import get_console, progress
from pipeline.core.errors import DataError, ProofFailed
from pipeline.core.stage import Stage
from pipeline.data.dataset import Row, read_split
from pipeline.models.architecture import read_shape
from pipeline.models.chat.template_consistency import shared_chat
from pipeline.models.files import copy_assets, link_weights, weight_files
from pipeline.optimization.formats import FORMATS
from pipeline.optimization.settings_checks import NO_VALIDATION, check_quantize

if TYPE_CHECKING:
    import torch

STAGE = Stage(
    version=1,
    libraries=("torch", "transformers", "nvidia-modelopt", "peft", "tokenizers", "jinja2"),
    less_memory="lower quantize.calibration.batch_size",
)


# A format is compared with the model on so many validation rows, and on so many positions in all of
# them. Each position has as many logits as the vocabulary has tokens.
PROBES, POSITIONS = 16, 512
# Largest difference of a logit between a calibrated model and the same model opened again. Weights
# and scales are stored exactly, so on one machine it is 0; kernels may reorder sums.
RELOAD_TOLERANCE = 1e-3
Probes = Sequence[tuple[Sequence[int], Sequence[int]]]


def run(config: Config, inputs: Mapping[str, Artifact], out: Path) -> Outcome:
    """Quantize inputs["merge"] in each format into a folder of its name.

    Raises:
        ConfigError: a format does not fit the model's sizes.
        MissingRuntime: calibrating a format needs a GPU that this machine does not have.
        ProofFailed: a saved model opens with different outputs.
        PipelineError: outputs are not finite.
    """
    settings = config.quantize
    source = inputs["merge"].require("hf_checkpoint").path
    dataset = inputs["prepare"].require("dataset")
    shared_chat(dataset, source)
    formats = tuple(dict.fromkeys((settings.format, *settings.compare)))
    check_quantize(config, read_shape(source))

    from pipeline.models import hf_model
    from pipeline.optimization import logit_probes, ptq

    for name in formats:
        ptq.require_runtime(name)
    batches = calibration_batches(
        read_split(dataset.path, "train"),
        count=settings.calibration.rows,
        batch_size=settings.calibration.batch_size,
        max_length=settings.calibration.max_length,
        seed=config.seed,
    )
    probes = _probes(read_split(dataset.path, "validation"))
    ptq.modelopt()
    dtype = ptq.compute_dtype(source)
    # The first format takes it over, so that the model is read once where there is one format.
    loaded = [hf_model.load_model(source, dtype=dtype)]
    reference = logit_probes.logits_at(loaded[0], probes)
    proof: dict[str, Any] = {}
    with progress() as bar:
        task = bar.add_task("quantize", total=len(formats))
        for name in formats:
            bar.update(task, description=f"quantize {name}")
            folder = out / name
            shutil.rmtree(folder, ignore_errors=True)
            if not FORMATS[name].quantized:
                loaded.clear()
                _copy(source, folder)
                proof[name] = _prove_copy(name, folder, dtype, probes, reference)
            else:
                proof[name] = _save_and_prove(
                    ptq.quantize(
                        loaded.pop() if loaded else hf_model.load_model(source, dtype=dtype),
                        name,
                        batches,
                        kv_cache=settings.kv_cache,
                        exclude=settings.exclude,
                    ),
                    name,
                    source,
                    folder,
                    probes,
                    reference,
                )
            bar.update(task, advance=1)
    _show(proof)
    return Outcome("quantized", _metrics(proof), proof=proof)


def calibration_batches(
    rows: Sequence[Row], *, count: int, batch_size: int, max_length: int, seed: int
) -> list[list[list[int]]]:
    """Token ids of `count` rows at most, drawn at random: [batch][row][token].

    Statistics are taken over every token that the model sees, so there is no padding. Rows of
    similar length form a batch, and the beginning of another conversation fills up each row.

    Raises:
        DataError: there are no rows.
    """
    if not rows:
        raise DataError(
            "the training split is empty, so there is nothing to calibrate on: see prepare"
        )
    drawn = random.Random(seed).sample(rows, min(count, len(rows)))
    texts = sorted((row.input_ids[:max_length] for row in drawn), key=len)
    batches = []
    for start in range(0, len(texts), batch_size):
        batch = texts[start : start + batch_size]
        width = len(batch[-1])
        filled = []
        for place, ids in enumerate(batch):
            others = (batch[(place + step) % len(batch)] for step in range(1, len(batch)))
            row = list(ids)
            while len(row) < width:
                row += next(others)
            filled.append(row[:width])
        batches.append(filled)
    return batches


def _probes(rows: Sequence[Row]) -> Probes:
    """(ids, positions that predict trained tokens) of validation rows, both evenly spread."""
    if not rows:
        raise DataError(NO_VALIDATION)
    chosen = rows[:: max(1, len(rows) // PROBES)][:PROBES]
    predicting = [[i for i, on in enumerate(row.loss_mask[1:]) if on] for row in chosen]
    step = max(1, math.ceil(sum(map(len, predicting)) / POSITIONS))
    return [(row.input_ids, at[::step]) for row, at in zip(chosen, predicting, strict=True)]


def _copy(source: Path, folder: Path) -> None:
    copy_assets(source, folder)
    link_weights(source, folder)
    for index in source.glob("*.safetensors.index.json"):
        shutil.copyfile(index, folder / index.name)


def _save_and_prove(
    model: Any, name: str, source: Path, folder: Path, probes: Probes, reference: "torch.Tensor"
) -> dict[str, Any]:
    """Save a calibrated model, open it again, compare it with itself and with the source.

    The caller keeps no reference to the model, so that memory holds one model at a time.
    """
    from pipeline.models import hf_model
    from pipeline.optimization import logit_probes, ptq

    calibrated = logit_probes.logits_at(model, probes)
    errors = ptq.weight_errors(model)
    plain_bytes = hf_model.bytes_of(ptq.own_dtype(source))
    size = ptq.packed_bytes(model, name, plain_bytes=plain_bytes)
    ptq.save(model, folder, source if FORMATS[name].keeps_weights else None)
    config = (folder / "config.json").read_bytes()
    copy_assets(source, folder)
    (folder / "config.json").write_bytes(config)
    del model
    reloaded = logit_probes.logits_at(ptq.load(folder), probes)
    return {
        "reload_difference": _require_same(name, reloaded, calibrated),
        **logit_probes.divergence(calibrated, reference),
        "bytes": size,
        "weight_error": {
            "mean": sum(errors.values()) / len(errors),
            "largest": max(errors.values()),
            "largest_in": max(errors, key=errors.__getitem__),
            "by_layer": errors,
        },
    }


def _prove_copy(
    name: str, folder: Path, dtype: str, probes: Probes, reference: "torch.Tensor"
) -> dict[str, Any]:
    from pipeline.models import hf_model
    from pipeline.optimization import logit_probes

    copied = logit_probes.logits_at(hf_model.load_model(folder, dtype=dtype), probes)
    return {
        "reload_difference": _require_same(name, copied, reference),
        **logit_probes.divergence(copied, reference),
        "bytes": sum(file.stat().st_size for file in weight_files(folder)),
    }


def _require_same(name: str, reloaded: "torch.Tensor", before: "torch.Tensor") -> float:
    difference = float((reloaded - before).abs().max())
    if difference > RELOAD_TOLERANCE:
        raise ProofFailed(
            f"{name} opens again with logits that differ by {difference:.2g} (at most "
            f"{RELOAD_TOLERANCE}): ModelOpt's saved state does not fit this version of it; install "
            "the locked versions (requirements.lock) and run stage=quantize again"
        )
    return difference


def _metrics(proof: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    names = ("bytes", "kl", "greedy_agreement", "reload_difference")
    return {f"{name}/{of}": float(proof[of][name]) for of in proof for name in names}


def _show(proof: Mapping[str, Mapping[str, Any]]) -> None:
    from rich.table import Table

    table = Table("format", box=None, header_style="bold")
    for title in ("size MiB", "KL to tuned", "same greedy token", "weight error"):
        table.add_column(title, justify="right")
    for name, facts in proof.items():
        error = facts.get("weight_error", {"mean": 0.0})["mean"]
        figures = (f"{facts['bytes'] / 2**20:.2f}", f"{facts['kl']:.2g}")
        table.add_row(name, *figures, f"{facts['greedy_agreement']:.1%}", f"{error:.1%}")
    get_console().print(table)
