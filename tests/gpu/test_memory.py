"""The planner's memory against what a GPU then shows: within a tenth, at layers of Llama-3-8B."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench.gpu_training import SEQUENCE, VOCABULARY, make_rows, model_folder
from pipeline.models.architecture import read_shape
from pipeline.planner.preflight import planned_memory
from pipeline.training import workers as launch
from pipeline.training.job import Job
from tests.finetune_settings import finetune_settings
from tests.integration.training_case import start_worker, train_apart

LAYERS = 4


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """Three steps of two rows, a row a micro-batch, on random weights."""
    folder = tmp_path_factory.mktemp("memory")
    settings = finetune_settings(
        max_steps=3, global_batch_size=4, micro_batch_size=1, warmup_steps=1, rank=16, alpha=32
    )
    return Job(
        settings=settings, hf=model_folder(folder / "hf", LAYERS), weights=None,
        train_rows=make_rows([SEQUENCE + 1] * 8, folder / "rows"), validation_rows=None,
        scratch=folder / "scratch", out=folder / "out", seed=0, max_length=SEQUENCE,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("method", "precision", "sizes"),
    [
        ("lora", "bf16", {}),
        ("lora", "bf16", {"micro_batch_size": 2}),
        ("lora", "fp8", {}),
        ("sft", "bf16", {}),
        ("sft", "fp8", {}),
        ("dora", "bf16", {}),
        ("lora", "bf16", {"processes": 2, "tensor": 2}),
        ("sft", "bf16", {"processes": 2, "tensor": 2}),
        ("sft", "bf16", {"processes": 2}),
        ("lora", "bf16", {"processes": 2, "pipeline": 2}),
        ("lora", "bf16", {"processes": 2, "context": 2}),
    ],
)
def test_memory_is_within_a_tenth_of_the_plan(
    job: Job, tmp_path: Path, method: str, precision: str, sizes: dict[str, int]
) -> None:
    if torch.cuda.device_count() < sizes.get("processes", 1):
        pytest.skip(f"this machine has {torch.cuda.device_count()} GPU")
    this = replace(
        job, scratch=tmp_path / "scratch", out=tmp_path / "out",
        settings=finetune_settings(job.settings, method=method, precision=precision, **sizes),
    )  # fmt: skip
    if this.parallel.processes == 1:  # here, what libraries keep of other runs would count
        trained = train_apart(this)
    else:
        trained = launch.train_in_processes(this, lambda point: None)
    shape = read_shape(job.hf)
    assert shape.vocab == VOCABULARY
    assert trained.gpu_memory == pytest.approx(
        planned_memory(this, shape, longest=SEQUENCE), rel=0.1
    )


def test_a_run_that_saves_and_goes_on_takes_no_more_than_the_plan(job: Job, tmp_path: Path) -> None:
    """A full fine-tune, of one layer: its checkpoints are 18 GB each."""
    this = replace(
        job, hf=model_folder(tmp_path / "hf", 1),
        settings=finetune_settings(
            job.settings, method="sft", max_steps=4, checkpoint_every=1
        ),
        scratch=tmp_path / "scratch", out=tmp_path / "out",
    )  # fmt: skip
    with start_worker(this) as killed:
        assert killed.stdout
        for line in killed.stdout:
            event = json.loads(line.removeprefix(launch.MARK)) if launch.MARK in line else {}
            if event.get("point", {}).get("step", 0) > 1:
                killed.kill()
                break
    found, shape = train_apart(this), read_shape(this.hf)
    shutil.rmtree(tmp_path)
    assert 0 < found.resumed_from < this.steps
    planned = planned_memory(this, shape, longest=SEQUENCE)
    assert found.gpu_memory < 1.1 * planned
