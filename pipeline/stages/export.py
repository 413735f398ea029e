"""Quantized → qnemo (TensorRT-LLM checkpoint) and unified HF, read back and compared.

    qnemo/   a TensorRT-LLM checkpoint for tensor x pipeline parallel ranks, and a tokenizer
    hf/      ModelOpt's unified HF checkpoint (vLLM, SGLang, TensorRT-LLM's PyTorch backend)

Both come from the same calibration of quantize.format. They are read back: their layout must follow
the formats' rules, and their unpacked weights are compared with the source's.
"""

import fnmatch
import shutil
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pipeline.config.schema import Config
from pipeline.core.artifact import Artifact, Outcome
from pipeline.core.console import get_console, progress
from pipeline.core.errors import ArtifactError, ProofFailed
from pipeline.core.stage import Stage
from pipeline.models.architecture import Shape, read_shape
from pipeline.models.sampling_defaults import write_defaults
from pipeline.optimization.formats import COPIED, FORMATS, exported_forms, most_excess
from pipeline.optimization.qnemo_layout import check_config, check_qnemo
from pipeline.optimization.settings_checks import check_export
from pipeline.optimization.unified_hf_layout import check_same, check_unified_hf

STAGE = Stage(
    version=2,
    libraries=("torch", "transformers", "nvidia-modelopt", "peft"),
    less_memory="put CUDA_VISIBLE_DEVICES= before the command, on a host with enough memory",
)


# Folders, and what people call their content.
FORMS = {"qnemo": "qnemo", "hf": "unified HF"}


def run(config: Config, inputs: Mapping[str, Artifact], out: Path) -> Outcome:
    """Write and prove the forms of quantize.format.

    Raises:
        ConfigError: the model cannot be split over so many ranks, or not in this format.
        ArtifactError: the quantized artifact has no such format.
        ProofFailed: what was written breaks a rule or is not the source's weights.
    """
    format, ranks = config.quantize.format, config.export
    source = inputs["merge"].require("hf_checkpoint").path
    quantized = inputs["quantize"].require("quantized").path / format
    if not (quantized / "config.json").is_file():
        raise ArtifactError(
            f"{quantized} does not exist: run `python -m pipeline stage=quantize quantize={format}`"
        )
    shape = read_shape(source)
    check_export(config, shape)

    from pipeline.optimization import export as writer
    from pipeline.optimization.scale_checks import check_scales

    forms = exported_forms(format, shape.no_qnemo)
    if "qnemo" not in forms:
        get_console().print(f"no qnemo folder: {shape.no_qnemo}")
    folders: dict[str, Path] = {form: out / form for form in forms}
    for form in FORMS:
        shutil.rmtree(out / form, ignore_errors=True)
    with progress() as bar:
        task = bar.add_task("export", total=len(folders) + 1)
        for form, folder in folders.items():
            bar.update(task, description=f"write {FORMS[form]}")
            if form == "qnemo":
                writer.write_qnemo(
                    quantized,
                    source,
                    folder,
                    format=format,
                    tensor_parallel=ranks.tensor_parallel,
                    pipeline_parallel=ranks.pipeline_parallel,
                )
            else:
                writer.write_unified_hf(quantized, source, folder, format=format)
            bar.update(task, advance=1)
            write_defaults(source, folder, config.engine.sampling)
        bar.update(task, description="compare with the source")
        for form, folder in folders.items():
            _require_rules(FORMS[form], _broken_rules(form, folder, format, source, shape))
        _require_scales(check_scales(quantized, folders, shape, format))
        tables = _compare(source, shape, folders)
        bar.update(task, description="export", advance=1)
    exclude = config.quantize.exclude
    proof, wrong = {}, []
    linear = frozenset(shape.linear_weights())
    for form, table in tables.items():
        proof[form], problems = _prove(form, table, format, exclude, linear)
        wrong += problems
    accepted = _overruled(wrong, ranks.overrule)
    sizes = {form: _weight_bytes(folder) for form, folder in folders.items()}
    excess = {form: facts["largest_excess"] for form, facts in proof.items()}
    get_console().print(
        f"exported {format}: "
        + ", ".join(f"{k} {v / 2**20:.2f} MiB" for k, v in sizes.items())
        + f"; at most {max(excess.values()):.2%} off beyond rounding"
    )
    metrics = {f"bytes/{form}": float(size) for form, size in sizes.items()}
    metrics |= {f"largest_excess/{form}": value for form, value in excess.items()}
    return Outcome("exported", metrics, proof={"format": format, **proof, **accepted})


def _broken_rules(
    form: str, folder: Path, format: str, source: Path, shape: Shape
) -> Sequence[str]:
    if form == "qnemo":
        return [*check_qnemo(folder, format, shape.family), *check_config(folder, shape)]
    return [*check_unified_hf(folder, format, shape.family), *check_same(folder, source)]


def _require_rules(form: str, problems: Sequence[str]) -> None:
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise ProofFailed(
            f"the {form} folder breaks a rule of its format: {problems[0]}{more}; layers "
            "that runtimes join must be excluded together (quantize.exclude); otherwise this is a "
            "bug: report it"
        )


def _require_scales(problems: Sequence[str]) -> None:
    if problems:
        raise ProofFailed(
            f"{problems[0]}; {len(problems)} such scales of inputs or of the cache would make a "
            "runtime round differently from the model that was evaluated: report it with the "
            "model's config.json"
        )


def _compare(
    source: Path, shape: Shape, folders: Mapping[str, Path]
) -> dict[str, dict[str, dict[str, float]]]:
    from pipeline.models.hf_model import WeightReader
    from pipeline.optimization.dequantize import compare
    from pipeline.optimization.exported_reader import QnemoWeights, UnifiedWeights

    with ExitStack() as stack:
        weights = stack.enter_context(WeightReader(source))
        readers: dict[str, Any] = {
            form: stack.enter_context(
                QnemoWeights(folder, shape)
                if form == "qnemo"
                else UnifiedWeights(folder, weights, shape)
            )
            for form, folder in folders.items()
        }
        return compare(readers, weights, shape)


def _prove(
    form: str,
    table: Mapping[str, Mapping[str, float]],
    format: str,
    exclude: Sequence[str],
    linear: Collection[str],
) -> tuple[dict[str, Any], list[str]]:
    """The figures of a form, and what is wrong with it, in words.

    linear: names of the weights that every format quantizes, but for those that are excluded.
    """
    storage, wrong = FORMATS[format].storage, []
    for name, figures in table.items():
        left_out = any(fnmatch.fnmatch(name, f"*{pattern}*") for pattern in exclude)
        due = storage is not None and name in linear and not left_out
        if due != ("excess" in figures):
            found, must = ("not quantized", "must be") if due else ("quantized", "must not be")
            wrong.append(f"{form}: {name} is {found}, and {must}")
        elif (
            due
            and storage
            and not figures["excess"] <= (most := most_excess(storage, figures["rounding"]))
        ):
            wrong.append(
                f"{form}: {name} unpacks to weights that are {figures['excess']:.1%} off beyond "
                f"what rounding costs ({figures['rounding']:.1%}), and {most:.1%} is allowed"
            )
        elif not due and not (
            figures["error"] <= COPIED.error and abs(figures["scale"] - 1) <= COPIED.scale
        ):
            wrong.append(f"{form}: {name} should be a copy, and is {figures['error']:.1%} off")
    return {
        "largest_error": max(f["error"] for f in table.values()),
        "largest_excess": max(f.get("excess", 0.0) for f in table.values()),
        "tensors": len(table),
        "by_tensor": {name: dict(figures) for name, figures in table.items()},
    }, wrong


def _overruled(wrong: Sequence[str], reason: str | None) -> dict[str, Any]:
    """What the manifest says of a refusal that export.overrule accepts; empty without one.

    Raises:
        ProofFailed: there is a refusal, and no reason.
    """
    if not wrong:
        return {}
    more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
    refusal = f"{wrong[0]}{more}"
    if reason is None:
        raise ProofFailed(
            f"{refusal}: every answer would be computed with these weights, so the file is not "
            "the model that was evaluated; report it with the model's config.json, exclude the "
            "layer (quantize.exclude), or accept it on the record with export.overrule=REASON"
        )
    return {"overruled": {"reason": reason, "refusal": refusal}}


def _weight_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))
