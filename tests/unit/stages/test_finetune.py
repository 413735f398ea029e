"""finetune: settings that do not fit are refused before NeMo is imported."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.config.schema import Config
from pipeline.core.artifact import Artifact
from pipeline.core.errors import ConfigError, DataError
from pipeline.data.dataset import Row, write_split
from pipeline.models.architecture import Shape
from pipeline.orchestration import compose
from pipeline.stages import finetune
from pipeline.training import workers as launch
from pipeline.training.best_weights import BestWeights
from pipeline.training.job import Checkpoints, Job, Point
from tests.unit.model_folders import make_model_folder

SHAPE = Shape(
    family="llama", layers=4, hidden=256, ffn=768, heads=8, kv_heads=4, head_dim=32, vocab=2048,
    max_positions=512, rope_theta=10_000.0, rope_scaling=None, norm_eps=1e-5, tied=False,
    qkv_bias=False, attention_dropout=0.0, initializer_range=0.02,
)  # fmt: skip
LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
    "vocab_size": 2048, "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4,
    "num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False,
}  # fmt: skip


def config(*overrides: str) -> Config:
    return compose.from_command_line(["stage=finetune", *overrides])[2]


@pytest.mark.parametrize("method", ["lora", "dora", "sft"])
def test_the_settings_that_ship_fit_the_bundled_model(method: str) -> None:
    finetune.check(config(f"finetune={method}").finetune, SHAPE)


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ("finetune.micro_batch_size=5", "global_batch_size=32 must be a multiple of"),
        ("finetune.parallel.processes=3", "data-parallel ranks, which is 96"),
        ("finetune.parallel.tensor=2", "tensor × pipeline × context is 2"),
        ("finetune.parallel.tensor=8 finetune.parallel.processes=8", "4 key-value heads"),
        ("finetune.parallel.pipeline=3 finetune.parallel.processes=3", "4 layers"),
        ("finetune.max_steps=10 finetune.warmup_steps=10", "warmup_steps=10 must be below"),
        ("finetune.objective=dpo finetune.pack_length=64", "pack_length=null"),
        (
            "finetune.objective=kto finetune.parallel.context=2 finetune.parallel.processes=2",
            "parallel.context=1",
        ),
        ("finetune.min_learning_rate=1", "min_learning_rate=1.0 must not be above"),
        ("finetune.adapter.target_modules=[wq]", "has 'wq', and the model has no linear layer"),
        ("finetune.schedule=wsd finetune.decay_share=0.9", "153 steps, and 150 are left after"),
        ("finetune.early_stopping.patience=3", "cannot end a run that is validated 3 times"),
        ("finetune.keep=best finetune.validate_every=170", "keep=best has no effect, as only"),
    ],
)
def test_settings_that_do_not_fit_are_refused(overrides: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        finetune.check(config(*overrides.split()).finetune, SHAPE)


def test_tensor_parallel_takes_any_vocabulary() -> None:
    """The output layer is padded (training/nemo/vocabulary.py)."""
    settings = config("finetune.parallel.tensor=2", "finetune.parallel.processes=2").finetune
    finetune.check(settings, replace(SHAPE, vocab=2047))


def test_recompute_is_refused_where_it_changes_nothing() -> None:
    for kind in ("selective", "full"):
        settings = config(f"finetune.recompute={kind}").finetune
        finetune.check(settings, SHAPE)
        with pytest.raises(ConfigError, match=rf"recompute={kind} changes nothing: the model has"):
            finetune.check(settings, replace(SHAPE, layers=1))


def test_the_length_is_checked_as_soon_as_the_rows_are_known() -> None:
    settings = config("finetune.max_steps=null", "finetune.epochs=1").finetune
    finetune.check(settings, SHAPE)
    finetune.check(settings, SHAPE, rows=1000)
    with pytest.raises(ConfigError, match="warmup_steps=20 must be below 4: the run has 4 steps"):
        finetune.check(settings, SHAPE, rows=100)
    with pytest.raises(ConfigError, match=r"epochs=1 takes 3.12e\+10 steps, and 1e\+09 are the"):
        finetune.check(settings, SHAPE, rows=10**12)


@pytest.mark.parametrize(
    "override",
    ["finetune.learning_rate=0", "finetune.adapter.rank=0", "finetune.method=qlora",
     "finetune.adapter.dropout=1", "finetune.clip_grad=-1", "finetune.max_steps=0"],
)  # fmt: skip
def test_values_out_of_range_are_refused(override: str) -> None:
    with pytest.raises(ConfigError, match=override.split("=")[0]):
        config(override)


def inputs(tmp_path: Path, rows: list[Row]) -> dict[str, Artifact]:
    """A base with tokenizer but no weights, and a dataset: enough for what comes before NeMo."""
    base, dataset = tmp_path / "base", tmp_path / "dataset"
    dataset.mkdir()
    make_model_folder(base / "hf", "demo")
    (base / "hf" / "config.json").write_text(json.dumps(LLAMA))
    write_split(dataset, "train", rows)
    write_split(dataset, "validation", [])

    def artifact(path: Path, kind: str) -> Artifact:
        manifest: Any = SimpleNamespace(kind=kind, stage="x", digest="made")
        return Artifact(path, manifest)

    return {"import": artifact(base, "nemo_checkpoint"), "prepare": artifact(dataset, "dataset")}


def test_a_dataset_without_rows_is_refused_before_nemo_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nemo", None)
    with pytest.raises(DataError, match="no row to train on"):
        finetune.run(config(), inputs(tmp_path, []), tmp_path / "out")


@pytest.mark.parametrize("override", ["finetune.early_stopping.patience=1", "finetune.keep=best"])
def test_what_needs_a_validation_loss_is_refused_without_rows_for_it(
    override: str, tmp_path: Path
) -> None:
    given = inputs(tmp_path, [Row([], [1] * 9, [1] * 9, "data/train.jsonl:1")])
    with pytest.raises(ConfigError, match="needs a validation loss, and there are no validation"):
        finetune.run(config(override), given, tmp_path / "out")


def test_a_run_whose_best_weights_are_gone_starts_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [Row([], [1] * 9, [1] * 9, "data/train.jsonl:1")]
    given, out = inputs(tmp_path, rows), tmp_path / "finetune-aaaa"
    write_split(given["prepare"].path, "validation", rows)
    found: list[int] = []

    def stop(job: Job, report: Any) -> Any:
        checkpoints = Checkpoints(job.scratch, job.identity)
        found.append(len(checkpoints.curve()))
        points = [Point(step, 1.0, 0.0, 0.0, 0.0, 2.0) for step in range(1, 4)]
        with checkpoints.writing(3, points, main=True):
            pass
        with BestWeights(job.scratch, job.identity).writing(1, main=True):
            pass
        raise KeyboardInterrupt

    monkeypatch.setattr(launch, "train_in_processes", stop)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            finetune.run(config("finetune.keep=best"), given, out)
    shutil.rmtree(out / ".scratch/best")
    with pytest.raises(KeyboardInterrupt):
        finetune.run(config("finetune.keep=best"), given, out)
    assert found == [0, 3, 0]


def test_a_row_longer_than_the_model_is_refused(tmp_path: Path) -> None:
    row = Row([], [1] * 5000, [1] * 5000, "data/train.jsonl:7")
    with pytest.raises(DataError, match=r"data/train.jsonl:7 has 5000 tokens"):
        finetune.run(config(), inputs(tmp_path, [row]), tmp_path / "out")


@pytest.mark.parametrize(("objective", "made_for"), [("dpo", "sft"), ("kto", "sft")])
def test_rows_of_another_objective_are_refused(
    objective: str, made_for: str, tmp_path: Path
) -> None:
    given = inputs(tmp_path, [Row([], [1] * 9, [1] * 9, "data/train.jsonl:1")])
    said = f"was made for finetune.objective={made_for}, and .*{objective}"
    with pytest.raises(DataError, match=said):
        finetune.run(config(f"finetune.objective={objective}"), given, tmp_path / "out")


def test_a_checkpoint_of_other_micro_batches_is_gone_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after running out of memory: other settings have another work folder."""
    jobs: list[Job] = []

    def stop(job: Job, report: Any) -> Any:
        jobs.append(job)
        raise KeyboardInterrupt

    monkeypatch.setattr(launch, "train_in_processes", stop)
    given = inputs(tmp_path, [Row([], [1] * 9, [1] * 9, "data/train.jsonl:1")])
    large, small = tmp_path / "finetune-aaaa", tmp_path / "finetune-bbbb"
    for out, size in ((large, 32), (small, 8)):
        with pytest.raises(KeyboardInterrupt):
            finetune.run(config(f"finetune.micro_batch_size={size}"), given, out)
        checkpoints = Checkpoints(jobs[-1].scratch, jobs[-1].identity)
        if out == large:
            points = [Point(step, 1.0, 0.0, 0.0, 0.0) for step in range(1, 4)]
            with checkpoints.writing(3, points, main=True):
                pass
        assert len(checkpoints.curve()) == 3
    assert jobs[0].settings.micro_batch_size != jobs[1].settings.micro_batch_size
