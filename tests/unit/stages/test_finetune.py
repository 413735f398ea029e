"""finetune: settings that do not fit are refused before NeMo is imported."""

import json
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
    ],
)
def test_settings_that_do_not_fit_are_refused(overrides: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        finetune.check(config(*overrides.split()).finetune, SHAPE)


def test_tensor_parallel_must_divide_the_vocabulary() -> None:
    settings = config("finetune.parallel.tensor=2", "finetune.parallel.processes=2").finetune
    with pytest.raises(ConfigError, match="2047 vocabulary entries"):
        finetune.check(settings, replace(SHAPE, vocab=2047))


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
