"""Every refusal of a stage that follows from config.json, the settings and this machine alone.

`stage=plan` and `stage=all` ask before anything runs, so that hours are not spent on a run that
cannot end. Each check is the one that its stage makes, so both say the same sentence. Imports
nothing heavy.
"""

from pipeline.config.schema import Config
from pipeline.core import hardware
from pipeline.core.hardware import Machine
from pipeline.data.settings_checks import check_prepare
from pipeline.engines.checkpoint import DTYPES, Checkpoint, planned_checkpoints
from pipeline.engines.memory import Decoder, check_answer_length, check_lengths
from pipeline.engines.registry import named
from pipeline.engines.selection import check_choice, check_speculation, find_profiles
from pipeline.evaluation.settings_checks import check_measures
from pipeline.models.architecture import Shape, read_shape
from pipeline.models.families import check_stage
from pipeline.optimization.settings_checks import (
    check_calibration,
    check_export,
    check_quantize,
    check_validation,
)
from pipeline.planner.preflight import check_precision
from pipeline.planner.rows import rows_of
from pipeline.training.settings_checks import check as check_training
from pipeline.training.settings_checks import check_validation_rows


def check_run(config: Config, *, here: bool = True) -> Shape:
    """Refuse a run of the graph that a stage of it would refuse; the model's sizes.

    here: whether it is to run on this machine, or on another, of which less is known.

    Raises:
        ConfigError, DataError, MissingRuntime: what the stage would raise, in its words.
    """
    shape = read_shape(config.model.path)
    check_stage(shape.family, "import", "finetune", "merge")
    check_prepare(config, shape)
    rows = rows_of(config)
    check_training(config.finetune, shape, nodes=config.launcher.nodes, rows=rows.count)
    check_validation_rows(config.finetune, bool(config.prepare.validation_share))
    check_validation(config)
    check_quantize(config, shape)
    check_export(config, shape)
    check_engine(config, shape)
    if here:
        machine = hardware.inspect_machine()
        check_precision(config.finetune, machine)
        check_calibration(config, machine)
        check_measures(config)
        check_profiles(config, shape, machine)
    return shape


def check_engine(config: Config, shape: Shape) -> None:
    """Refuse lengths and arguments that the engine, or the model, does not have.

    Raises:
        ConfigError: names the setting and what is allowed.
    """
    record = named(config.engine.name)
    if record:
        record.check_settings(config.engine)
        check_speculation(record, config.engine)
    if record is None or not record.elsewhere:
        check_lengths(config.engine, shape.max_positions)
    check_answer_length(config.benchmark.max_tokens, config.engine.max_seq_len)


def check_profiles(config: Config, shape: Shape, machine: Machine) -> None:
    """Refuse an engine or a profile that stage=build could not choose on this machine.

    Memory is not judged: before the model is there, its bytes are an estimate.

    Raises:
        ConfigError: there is no such profile, or the engine does not take the model's sizes.
        MissingRuntime: the engine's runtime is not here.
    """
    record = named(config.engine.name)
    if record and record.elsewhere:
        return
    merged = Checkpoint("hf", DTYPES[config.model.dtype])
    planned = planned_checkpoints(
        config.quantize.format,
        config.quantize.kv_cache,
        config.export.tensor_parallel,
        config.model.dtype,
        shape.no_qnemo,
    )
    profiles = find_profiles(
        Decoder.of(shape),
        [merged, *planned],
        config.engine,
        machine,
        lora_rank=config.engine.lora_rank,
        measured={},
    )
    check_choice(profiles, config.engine)
