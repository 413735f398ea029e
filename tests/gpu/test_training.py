"""Training on GPUs computes what a CPU does, however many share the work.

Processes that are to be without a GPU get an empty CUDA_VISIBLE_DEVICES.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.training import workers as launch
from pipeline.training.job import Job, Trained
from pipeline.training.nemo import models as nemo
from pipeline.training.nemo.session import nemo_session
from tests.integration.training_case import make_job, start_worker, train_apart

NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}
# Products in bfloat16 have 8 bits of mantissa: sums of many are near to 1 in 1000, and 20 steps of
# Adam carry the difference on.
BF16 = 5e-3
# FP8 has 3 or 4 bits.
FP8 = 5e-2


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in float32, written by a CPU."""
    return made_on_cpu(tmp_path_factory.mktemp("model"), "kv_heads=4")


def made_on_cpu(folder: Path, options: str) -> Path:
    code = (
        "import sys, pathlib; from tests.integration.training_case import make_base; "
        f"make_base(pathlib.Path(sys.argv[1]), {options})"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(folder)], env=environment(), check=True, timeout=300
    )
    return folder / "base"


def environment() -> dict[str, str]:
    return {**os.environ, **NO_GPU}


def train(job: Job) -> Trained:
    return launch.train_in_processes(job, lambda point: None)


def losses(trained: Trained) -> list[float]:
    return [p.loss for p in trained.curve]


@pytest.fixture(scope="module")
def one(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trained]:
    """Both methods on one GPU."""
    return {
        method: train(make_job(base, tmp_path_factory.mktemp(method), method=method))
        for method in ("lora", "sft")
    }


@pytest.mark.parametrize("method", ["lora", "sft"])
def test_a_gpu_follows_a_cpu_and_each_opens_what_the_other_wrote(
    method: str, base: Path, tmp_path: Path
) -> None:
    jobs = {}
    for device in ("cpu", "gpu"):
        (tmp_path / device).mkdir()
        jobs[device] = make_job(base, tmp_path / device, method=method)
    on_cpu, on_gpu = train_apart(jobs["cpu"], **NO_GPU), train(jobs["gpu"])
    np.testing.assert_allclose(losses(on_gpu), losses(on_cpu), rtol=BF16)
    for job in jobs.values():
        nemo.copy_assets(job.hf, job.out / "hf")
        here, there = logits_here(base, job), logits_on_cpu(base, job)
        # Float32 on both; the GPU multiplies it in TF32.
        assert (here - there).abs().max() <= 1e-2 * there.abs().max()


@pytest.mark.parametrize("pack_length", [None, 64])
@pytest.mark.parametrize("family", ["Qwen2", "Mistral"])
def test_other_families_follow_a_cpu_as_well(
    family: str, pack_length: int | None, tmp_path: Path
) -> None:
    base = made_on_cpu(tmp_path, f"family={family!r}")
    found: list[list[float]] = []
    for variables in (NO_GPU, {}):
        folder = tmp_path / f"run{len(found)}"
        folder.mkdir()
        job = make_job(base, folder, pack_length=pack_length)
        found.append(losses(train_apart(job, **variables)))
    np.testing.assert_allclose(found[0], found[1], rtol=BF16)


@pytest.mark.parametrize("method", ["lora", "sft"])
def test_a_model_is_moved_before_its_old_memory_is_used_again(
    method: str,
    base: Path,
    one: dict[str, Trained],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """NeMo moves it on a stream of its own, here one that begins late."""
    with nemo_session():
        from nemo.lightning.megatron_parallel import MegatronParallel
    init_ddp = MegatronParallel.init_ddp

    def late(model: Any) -> None:
        torch.cuda._sleep(2_000_000_000)  # cycles: a second
        init_ddp(model)

    monkeypatch.setattr(MegatronParallel, "init_ddp", late)
    found = train(make_job(base, tmp_path, method=method))
    np.testing.assert_allclose(losses(found), losses(one[method]), rtol=BF16 / 5)


def test_a_weight_of_two_layers_gets_the_gradients_of_both(tmp_path: Path) -> None:
    """The embedding's and the output layer's, which both add to the sum on a GPU."""
    base = made_on_cpu(tmp_path, "tied=True")
    found: list[list[float]] = []
    for variables in (NO_GPU, {}):
        folder = tmp_path / f"run{len(found)}"
        folder.mkdir()
        found.append(losses(train_apart(make_job(base, folder, method="sft"), **variables)))
    np.testing.assert_allclose(found[0], found[1], rtol=BF16)


def logits_here(base: Path, job: Job) -> torch.Tensor:
    with nemo_session():
        if job.settings.method == "sft":
            model = nemo.open_checkpoint(job.out)
        else:
            model = nemo.open_checkpoint(base, adapter=job.out)
        return nemo.logits(model, range(10, 40))


def logits_on_cpu(base: Path, job: Job) -> torch.Tensor:
    file = job.out / "logits.pt"
    code = (
        "import pathlib, sys, torch; from pipeline.training.job import Job; "
        "from tests.gpu.test_training import logits_here; "
        "found = logits_here(pathlib.Path(sys.argv[1]), Job.from_json(sys.argv[2])); "
        "torch.save(found, sys.argv[3])"
    )
    command = [sys.executable, "-c", code, str(base), job.to_json(), str(file)]
    subprocess.run(command, env=environment(), check=True, timeout=300)
    return torch.load(file, weights_only=True)


def test_the_fused_loss_weighs_each_token_with_its_own_mask() -> None:
    """Transformer Engine beside torch: rows of unlike masks, called as Megatron does."""
    with nemo_session():  # for its quiet imports
        import megatron.core.models.common.language_module.language_module as module

        from pipeline.training.nemo.patches.performance import contiguous_gradient

    logits = torch.randn(6, 3, 64, device="cuda")  # [sequence, batch, vocabulary]
    labels = torch.randint(0, 64, (3, 6), device="cuda")
    mask = (torch.rand(3, 6, device="cuda") > 0.5).float()
    gradients = []
    for fused in (contiguous_gradient(module.te_parallel_cross_entropy), None):
        ours = logits.clone().requires_grad_()
        if fused:
            tokens = labels.t().contiguous()
            tokens = torch.as_strided(tokens, tokens.size(), (tokens.size()[1], 1))
            losses = fused(ours * 1, tokens, None, False).transpose(0, 1).contiguous()
        else:
            flat = ours.transpose(0, 1).flatten(0, 1)
            losses = torch.nn.functional.cross_entropy(flat, labels.flatten(), reduction="none")
        (losses.reshape(-1) * mask.reshape(-1)).sum().backward()
        gradients.append(ours.grad)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def test_fp8_follows_bf16(base: Path, one: dict[str, Trained], tmp_path: Path) -> None:
    for method in ("lora", "sft"):
        (tmp_path / method).mkdir()
        fp8 = train(make_job(base, tmp_path / method, method=method, precision="fp8"))
        np.testing.assert_allclose(losses(fp8), losses(one[method]), rtol=FP8)
        assert losses(fp8) != losses(one[method])


LAYOUTS = {
    "dp2": {"processes": 2},
    "tp2": {"processes": 2, "tensor": 2},
    "pp2": {"processes": 2, "pipeline": 2},
    "cp2": {"processes": 2, "context": 2},
    "tp4": {"processes": 4, "tensor": 4},
    "tp2-dp2": {"processes": 4, "tensor": 2},
}


def require_gpus(count: int) -> None:
    if torch.cuda.device_count() < count:
        pytest.skip(f"this machine has {torch.cuda.device_count()} GPUs, and {count} are needed")


@pytest.mark.parametrize("method", ["lora", "sft"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_ranks_that_share_a_model_give_the_losses_of_one(
    layout: str, method: str, base: Path, one: dict[str, Trained], tmp_path: Path
) -> None:
    sizes = LAYOUTS[layout]
    require_gpus(sizes["processes"])
    found = train(make_job(base, tmp_path, method=method, **sizes))
    np.testing.assert_allclose(losses(found), losses(one[method]), rtol=BF16)
    validation = [
        [p.validation_loss for p in run.curve if p.validation_loss is not None]
        for run in (found, one[method])
    ]
    np.testing.assert_allclose(validation[0], validation[1], rtol=BF16)
    assert found.trainable_parameters == one[method].trainable_parameters


@pytest.mark.parametrize("method", ["lora", "sft"])
def test_ranks_of_one_head_each_give_the_losses_of_one_rank(method: str, tmp_path: Path) -> None:
    require_gpus(2)
    base = made_on_cpu(tmp_path, "heads=2, kv_heads=2")
    found: list[list[float]] = []
    for sizes in ({}, LAYOUTS["tp2"]):
        folder = tmp_path / f"run{len(found)}"
        folder.mkdir()
        found.append(losses(train(make_job(base, folder, method=method, **sizes))))
    np.testing.assert_allclose(found[0], found[1], rtol=BF16)


@pytest.mark.parametrize("method", ["lora", "sft"])
def test_a_run_goes_on_in_another_layout(
    method: str, base: Path, one: dict[str, Trained], tmp_path: Path
) -> None:
    require_gpus(2)

    class Stop(Exception):
        pass

    def stop(point: Any) -> None:
        if point.step == 9:
            raise Stop

    with pytest.raises(Stop):
        launch.train_in_processes(make_job(base, tmp_path, method=method, **LAYOUTS["tp2"]), stop)
    found = train(make_job(base, tmp_path, method=method, **LAYOUTS["dp2"]))
    assert 0 < found.resumed_from <= 12
    np.testing.assert_allclose(losses(found), losses(one[method]), rtol=BF16)


@pytest.mark.parametrize("method", ["lora", "sft"])
def test_killed_it_goes_on_over_the_same_rows(
    method: str, base: Path, one: dict[str, Trained], tmp_path: Path
) -> None:
    job = make_job(base, tmp_path, method=method)
    with start_worker(job) as killed:
        assert killed.stdout
        for line in killed.stdout:
            event = json.loads(line.removeprefix(launch.MARK)) if launch.MARK in line else {}
            if event.get("point", {}).get("step", 0) > job.steps // 2:
                killed.kill()
                break
    found = train_apart(job)
    assert 0 < found.resumed_from < job.steps
    np.testing.assert_allclose(losses(found), losses(one[method]), rtol=BF16 / 5)


def test_packs_are_shared_by_ranks(base: Path, one: dict[str, Trained], tmp_path: Path) -> None:
    require_gpus(2)
    found = train(make_job(base, tmp_path, pack_length=64, **LAYOUTS["dp2"]))
    np.testing.assert_allclose(losses(found), losses(one["lora"]), rtol=BF16)
