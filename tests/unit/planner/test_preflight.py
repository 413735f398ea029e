"""Jobs that a GPU machine cannot run are refused in one line, with the setting that would fit."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.llama_shapes import write
from pipeline.core import hardware
from pipeline.core.errors import Busy, ConfigError, MissingRuntime, ResourceError
from pipeline.core.gpu_use import GpuUse, Holder
from pipeline.core.hardware import GIB, Gpu, Machine
from pipeline.planner import preflight
from pipeline.training.job import Checkpoints, Job, Point, out_of_memory
from tests.finetune_settings import finetune_settings
from tests.unit.planner.cases import SETTINGS, shape_of

H200 = Gpu("NVIDIA H200", 140 * GIB, "9.0", mig=False)
A100 = Gpu("NVIDIA A100-SXM4-80GB", 80 * GIB, "8.0", mig=False)


def job(folder: Path = Path(), **changes: Any) -> Job:
    nodes = changes.pop("nodes", 1)
    return Job(
        settings=finetune_settings(SETTINGS, **changes),
        hf=folder, weights=None, train_rows=folder, validation_rows=None,
        scratch=folder / "scratch", out=folder, seed=0, max_length=4096, nodes=nodes,
    )  # fmt: skip


@pytest.fixture
def with_gpus(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Set the machine's GPUs, and who uses them."""

    def set_machine(*gpus: Gpu, use: list[GpuUse] | None = None) -> None:
        machine = Machine("Linux", "3.12", "a CPU", 16.0, 64 * GIB, "580", gpus)
        monkeypatch.setattr(hardware, "inspect_machine", lambda: machine)
        monkeypatch.setattr(preflight, "gpu_use", lambda: use or [])

    return set_machine


def refusal(kind: type[Exception], code: int, *, longest: int = 4096, **changes: Any) -> str:
    with pytest.raises(kind) as caught:
        preflight.check_machine(job(**changes), shape_of("8b"), longest=longest)
    said = str(caught.value)
    assert "\n" not in said
    assert caught.value.exit_code == code  # type: ignore[attr-defined]
    return said


def test_a_job_that_fits_is_let_through(with_gpus: Any) -> None:
    with_gpus(H200)
    preflight.check_machine(job(micro_batch_size=4), shape_of("8b"), longest=4096)
    with_gpus()  # a CPU computes in float32
    preflight.check_machine(job(), shape_of("8b"), longest=512)


def test_fp8_on_a_cpu_which_would_train_in_float32(with_gpus: Any) -> None:
    with_gpus()
    said = refusal(MissingRuntime, 7, precision="fp8")
    assert said.startswith("finetune.precision=fp8: this machine, which has no GPU, has no FP8")


def test_more_processes_than_gpus(with_gpus: Any) -> None:
    with_gpus(H200, H200)
    said = refusal(ConfigError, 2, processes=4, tensor=4)
    assert "parallel.processes=4 (tensor=4) needs 4 GPUs a machine and this one has 2" in said
    assert "lower it to 2" in said
    preflight.check_machine(job(processes=4, nodes=2), shape_of("8b"), longest=4096)


def test_fp8_on_a_card_without_it(with_gpus: Any) -> None:
    with_gpus(A100)
    said = refusal(MissingRuntime, 7, precision="fp8")
    assert "NVIDIA A100-SXM4-80GB (compute capability 8.0) has no FP8" in said
    assert said.endswith("set finetune.precision=bf16")


def test_more_memory_than_a_gpu_has(with_gpus: Any) -> None:
    with_gpus(A100)
    said = refusal(ResourceError, 9, micro_batch_size=8)
    assert "takes about 161.8 GiB of each GPU and NVIDIA A100-SXM4-80GB has 80.0: set" in said
    assert "set finetune.micro_batch_size=2 (53.4 GiB)" in said


def test_more_memory_than_a_machine_without_gpus_has(with_gpus: Any) -> None:
    with_gpus()
    said = refusal(ResourceError, 9, longest=256, processes=2, tensor=2, micro_batch_size=8)
    assert "GiB of each process and this machine has 32.0: set finetune.micro_batch_size=" in said


def test_a_gpu_in_use_by_others(with_gpus: Any) -> None:
    holder = Holder(4242, "python train.py", 118 * GIB)
    used = GpuUse(0, "NVIDIA H200", 140 * GIB, 22 * GIB, (holder,))
    with_gpus(H200, use=[used])
    said = refusal(Busy, 8)
    assert "GPU 0 (NVIDIA H200) has 22.0 of 140.0 GiB free and training takes about 35.3" in said
    assert "process 4242 (python train.py) uses 118.0 GiB" in said
    assert "CUDA_VISIBLE_DEVICES" in said
    with_gpus(H200, H200, use=[replace(used, index=1, free=139 * GIB), used])
    preflight.check_machine(job(), shape_of("8b"), longest=4096)  # takes the first one only


def test_out_of_memory_names_what_would_fit_and_the_checkpoint(
    with_gpus: Any, tmp_path: Path
) -> None:
    with_gpus(A100)
    run = job(write(tmp_path, "8b"), micro_batch_size=4)
    run = replace(run, less_memory=preflight.less_memory(run, shape_of("8b"), longest=4096))
    error = out_of_memory(run, 4096, memory=80 * GIB)
    assert error.exit_code == 9
    said = str(error)
    assert "a GPU's 80 GiB ran out while training on rows of up to 4096 tokens" in said
    assert "set finetune.micro_batch_size=2 (53.4 GiB)" in said
    assert said.endswith("run again, which starts again")
    points = [Point(step, 1.0, 0.0, 0.0, 0.0) for step in range(1, 8)]
    with Checkpoints(run.scratch, run.identity).writing(7, points, main=True):
        pass
    said = str(out_of_memory(run, 4096, memory=80 * GIB))
    assert said.endswith("which resumes from the checkpoint of step 7")


def test_out_of_memory_where_the_planner_thought_it_fits_asks_for_less(with_gpus: Any) -> None:
    with_gpus(H200)
    said = preflight.less_memory(job(micro_batch_size=2), shape_of("8b"), longest=4096)
    assert "set finetune.micro_batch_size=1 (35.3 GiB)" in said
