"""Training on the real NeMo and Megatron-Core, with a tiny random model.

One process imports NeMo once for most of these tests; what is killed runs in processes of its own.
"""

import gc
import json
import random
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.core.artifact import Outcome
from pipeline.core.errors import PipelineError, ResourceError
from pipeline.core.monkeypatch import Patch
from pipeline.orchestration import compose
from pipeline.stages import finetune
from pipeline.training import workers as launch
from pipeline.training.batches import TokenRows
from pipeline.training.job import Checkpoints, Job, Point, Trained
from pipeline.training.nemo import models as nemo
from pipeline.training.nemo.session import nemo_session
from tests.integration.training_case import (
    inputs,
    make_base,
    make_job,
    make_rows,
    start_worker,
    train_apart,
)

METHODS = ["lora", "dora", "sft"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("model"))


def train(job: Job) -> Trained:
    return launch.train_in_processes(job, lambda point: None)


def losses(trained: Trained) -> list[tuple[float, float | None]]:
    return [(p.loss, p.validation_loss) for p in trained.curve]


@pytest.fixture(scope="module")
def uninterrupted(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train(make_job(base, tmp_path_factory.mktemp("whole"), dropout=0.1))


def run_stage(method: str, base: Path, folder: Path) -> Outcome:
    settings = (
        "finetune.max_steps=24 finetune.global_batch_size=8 finetune.micro_batch_size=8 "
        "finetune.warmup_steps=2 finetune.validate_every=10 finetune.checkpoint_every=100 "
        f"finetune={method} finetune.learning_rate=1e-2"
    ).split()
    config = compose.from_command_line(["stage=finetune", *settings])[2]
    (folder / "out").mkdir()
    return finetune.run(config, inputs(base, folder / "dataset"), folder / "out")


@pytest.mark.parametrize("method", METHODS)
def test_each_method_learns_and_its_checkpoint_computes_the_reported_loss(
    method: str, base: Path, tmp_path: Path
) -> None:
    outcome = run_stage(method, base, tmp_path)
    out = tmp_path / "out"
    curve = json.loads((out / "curve.json").read_text())
    assert [p["step"] for p in curve] == list(range(1, 25))
    # An adapter on random weights moves them little.
    assert curve[-1]["loss"] < curve[0]["loss"] - (1 if method == "sft" else 0.15)
    assert [p["step"] for p in curve if p["validation_loss"] is not None] == [10, 20, 24]
    assert (out / "loss_curve.png").stat().st_size > 1000
    assert outcome.kind == ("nemo_checkpoint" if method == "sft" else "nemo_adapter")
    assert (out / "hf" / "tokenizer.json").is_file()

    # The loss again, from the files, row by row and without padding.
    total, count = 0.0, 0
    with nemo_session():
        if method == "sft":
            model = nemo.open_checkpoint(out)
        else:
            model = nemo.open_checkpoint(base, adapter=out)
        for row in make_rows(11, seed=1):
            logits = nemo.logits(model, row.input_ids[:-1])
            loss = torch.nn.functional.cross_entropy(
                logits, torch.tensor(row.input_ids[1:]), reduction="none"
            )
            mask = torch.tensor(row.loss_mask[1:])
            total += float((loss * mask).sum())
            count += int(mask.sum())
    assert outcome.metrics["validation_loss"] == pytest.approx(total / count, rel=1e-5)


def test_the_loss_is_over_tokens_however_the_batch_is_cut(base: Path, tmp_path: Path) -> None:
    whole = train(make_job(base, tmp_path / "whole", method="sft", max_steps=6, micro_batch_size=8))
    cut = train(make_job(base, tmp_path / "cut", method="sft", max_steps=6, micro_batch_size=1))
    assert np.allclose(
        [p.loss for p in whole.curve], [p.loss for p in cut.curve], rtol=1e-4, atol=0
    )
    assert np.allclose(
        [p.grad_norm for p in whole.curve], [p.grad_norm for p in cut.curve], rtol=1e-3, atol=0
    )


def test_killed_at_any_step_it_goes_on_to_the_same_losses(
    base: Path, tmp_path: Path, uninterrupted: Trained
) -> None:
    job = make_job(base, tmp_path, dropout=0.1)
    step = random.randint(4, job.settings.max_steps - 2)
    with start_worker(job) as killed:
        assert killed.stdout
        for line in killed.stdout:
            if f'"step": {step},' in line:
                killed.kill()
                break
    done = len(Checkpoints(job.scratch, job.identity).curve())
    assert 0 < done <= step + job.settings.checkpoint_every
    with start_worker(job) as resumed:
        output, _ = resumed.communicate(timeout=300)
    assert resumed.returncode == 0
    events = [
        json.loads(line.removeprefix(launch.MARK))
        for line in output.splitlines()
        if line.startswith(launch.MARK)
    ]
    steps = [Point(**e["point"]).step for e in events if "point" in e]
    assert steps == list(range(done + 1, job.settings.max_steps + 1))
    trained = Trained.from_json(events[-1]["trained"])
    assert trained.resumed_from == done
    assert losses(trained) == losses(uninterrupted), f"killed at step {step}"


def test_a_model_that_drops_attention_goes_on_to_the_same_losses(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", attention_dropout=0.1)
    jobs = [make_job(base, tmp_path / name, max_steps=8) for name in ("whole", "stopped")]
    whole = train(jobs[0])

    def stop(point: Point) -> None:
        if point.step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        launch.train_in_processes(jobs[1], stop)
    again = train(jobs[1])
    assert 0 < again.resumed_from < 8
    assert losses(again) == losses(whole)


def test_full_training_goes_on_to_the_same_losses(base: Path, tmp_path: Path) -> None:
    job = make_job(base, tmp_path / "whole", method="sft", max_steps=8)
    whole = train(job)

    def fail(point: Point) -> None:
        if point.step == 5:
            raise KeyboardInterrupt

    halved = make_job(base, tmp_path / "halved", method="sft", max_steps=8)
    with pytest.raises(KeyboardInterrupt):
        launch.train_in_processes(halved, fail)
    again = train(halved)
    assert again.resumed_from == 3
    assert losses(again) == losses(whole)


def test_out_of_memory_it_goes_on_with_smaller_micro_batches(base: Path, tmp_path: Path) -> None:
    whole = train(make_job(base, tmp_path / "whole", method="sft", max_steps=8))

    def fail(point: Point) -> None:
        if point.step == 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    advice = "set finetune.micro_batch_size=2"
    job = make_job(base, tmp_path / "large", method="sft", max_steps=8, less_memory=advice)
    with pytest.raises(ResourceError) as refused:
        launch.train_in_processes(job, fail)
    said = str(refused.value)
    assert advice in said
    assert said.endswith("run again, which resumes from the checkpoint of step 3")
    smaller = make_job(base, tmp_path / "small", method="sft", max_steps=8, micro_batch_size=2)
    Checkpoints(smaller.scratch, smaller.identity).adopt([job.scratch])
    again = train(smaller)
    assert again.resumed_from == 3
    assert np.allclose(
        [p.loss for p in again.curve], [p.loss for p in whole.curve], rtol=1e-4, atol=0
    )


def test_validating_does_not_count_as_the_time_of_steps(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with nemo_session():
        from pipeline.training.nemo import callbacks
    each, clock, validation_loss = 10_000.0, time.perf_counter, callbacks.Recorder._validation_loss
    waited = [0.0]  # seconds that a clock shows and nobody waits for: no machine is that slow

    def slow(*arguments: Any) -> float | None:
        waited[0] += each
        return validation_loss(*arguments)

    monkeypatch.setattr(callbacks.Recorder, "_validation_loss", slow)
    ahead = SimpleNamespace(perf_counter=lambda: clock() + waited[0])
    monkeypatch.setattr(callbacks, "time", ahead)
    job = make_job(base, tmp_path, max_steps=4, validate_every=2, checkpoint_every=100)
    curve = train(job).curve
    tokens = job.settings.global_batch_size * max(len(row.input_ids) for row in make_rows(120))
    assert [p.step for p in curve if p.tokens_per_second > tokens / each] == [1, 2, 3, 4]
    assert [p.step for p in curve if p.validation_loss is not None] == [2, 4]


def test_a_loss_that_is_no_number_names_the_step(base: Path, tmp_path: Path) -> None:
    job = make_job(base, tmp_path, method="sft", weight_decay=0.0)
    # Far above what the schema allows, so that numbers overflow within a few steps.
    job = replace(job, settings=job.settings.model_copy(update={"learning_rate": 1e30}))
    with pytest.raises(PipelineError, match=r"the loss is nan at step \d+ of 20: lower"):
        train(job)


def test_a_gradient_that_is_no_number_names_the_step(base: Path, tmp_path: Path) -> None:
    """Scaled down to the norm where gradients are clipped it would be zero: nothing is learned."""
    job = make_job(base, tmp_path)
    vars(job.settings.adapter)["alpha"] = 10**30  # beyond the bound that settings have
    with pytest.raises(PipelineError, match="the gradient's norm is inf at step 1 of 20: lower"):
        train(job)


@pytest.mark.parametrize(("method", "tolerance"), [("sft", 1e-3), ("lora", 2e-2)])
def test_training_without_patches_gives_nearly_the_same_losses(
    method: str, tolerance: float, base: Path, tmp_path: Path
) -> None:
    """In a process of its own, as NeMo is then imported without patches too. NeMo draws an adapter
    from other random numbers, so only the first loss of LoRA, whose update is zero, is the same."""
    runs = {}
    for patches, run in (("all", train), ("none", train_apart)):
        (tmp_path / patches).mkdir()
        changes = {"method": method, "patches": patches, "max_steps": 8, "checkpoint_every": 5}
        runs[patches] = run(make_job(base, tmp_path / patches, **changes))
    found, expected = ([p.loss for p in runs[name].curve] for name in ("none", "all"))
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    np.testing.assert_allclose(found, expected, rtol=tolerance)


def test_without_patches_only_required_records_are_applied(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    applied: list[Patch] = []
    by = Patch.by
    monkeypatch.setattr(Patch, "by", lambda patch, **v: (applied.append(patch), by(patch, **v))[1])
    job = make_job(base, tmp_path, max_steps=1, patches="none")
    train(job)
    assert applied
    assert all(patch.required for patch in applied)
    train(make_job(base, tmp_path / "all", max_steps=1))
    assert not all(patch.required for patch in applied)


def test_every_patch_for_transformer_engine_is_applied_to_an_attribute_of_that_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With modules that stand in for Transformer Engine and the kernels, which need a GPU."""
    pytorch, kernels = "transformer_engine.pytorch", "pipeline.training.nemo.patches.triton_kernels"
    layer = type("TransformerEngineBaseModule", (), {"grad_output_preprocess": None})
    members: dict[str, dict[str, Any]] = {
        "transformer_engine_torch": {"multi_tensor_adam_param_remainder": None},
        f"{pytorch}.optimizers": {"FusedAdam": type("FusedAdam", (), {"load_state_dict": None})},
        f"{pytorch}.module.base": {"TransformerEngineBaseModule": layer},
        kernels: {"rotated": object(), "swiglu_back": object()},
    }
    with nemo_session():
        from pipeline.training.nemo.patches import performance
        from pipeline.training.nemo.patches.records import PATCHES

        for name, values in members.items():
            module = ModuleType(name)
            vars(module).update(values)
            monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.setattr(performance, "has_transformer_engine", lambda: True)
        chosen = [p for p in PATCHES if p.where == "Transformer Engine"]

        def found() -> list[Any]:
            return [getattr(p._owner(), name, None) for p in chosen for name in p.names]

        before = found()
        with performance.fast_training():
            assert not any(new is old for new, old in zip(found(), before, strict=True))
        assert all(new is old for new, old in zip(found(), before, strict=True))
        monkeypatch.undo()


def test_a_model_is_wrapped_between_two_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    with nemo_session():
        from nemo.lightning.megatron_parallel import MegatronParallel

        from pipeline.training.nemo.patches.ddp_stream_sync import synchronized_ddp

        monkeypatch.setattr(torch.cuda, "synchronize", lambda: events.append("waited"))
        monkeypatch.setattr(MegatronParallel, "init_ddp", lambda model: events.append("wrapped"))
        with synchronized_ddp():
            MegatronParallel.init_ddp(None)
        monkeypatch.undo()
    assert events == ["waited", "wrapped", "waited"]


def test_a_loss_divided_beforehand_gives_the_gradients_that_megatron_divides(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for name in ("before", "after"):
        (tmp_path / name).mkdir()
        job = make_job(base, tmp_path / name, method="sft", micro_batch_size=2)
        found.append([(p.loss, p.grad_norm) for p in train(job).curve])
        with nemo_session():
            from pipeline.training.nemo import trainer as nemo_training
        monkeypatch.setattr(nemo_training, "_scale_beforehand", lambda *given: None)
    np.testing.assert_allclose(found[0], found[1], rtol=2e-3)
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-5)


def test_the_gradient_of_an_embedding_is_added_to_its_sum() -> None:
    with nemo_session():
        from pipeline.training.nemo.patches.gradient_accumulation import embedding

    draw = torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(9, 4, generator=draw))
    batches = [torch.tensor([[1, 2, 2], [8, 1, 0]]), torch.tensor([[2, 2, 7], [0, 0, 0]])]
    gradients = [torch.randn(2, 3, 4, generator=draw) for _ in batches]
    for ids, gradient in zip(batches, gradients, strict=True):
        embedding(ids, weight).backward(gradient)  # torch's, without a sum to add to
    expected, weight.grad = weight.grad, None
    weight.main_grad = torch.zeros(9, 4, dtype=torch.float64)  # type: ignore[attr-defined]
    for ids, gradient in zip(batches, gradients, strict=True):
        output = embedding(ids, weight)
        assert torch.equal(output, weight[ids])
        output.backward(gradient)
    assert weight.grad is None
    torch.testing.assert_close(weight.main_grad.float(), expected)  # type: ignore[attr-defined]


class Operators(TorchDispatchMode):
    """Names of the operators that run inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def frozen_output_gradient() -> tuple[torch.Tensor, list[str]]:
    """Input gradient of a frozen layer for one row, as the loss gives it, and operators used."""
    from megatron.core.tensor_parallel.layers import LinearWithFrozenWeight

    draw = torch.Generator().manual_seed(0)
    x = torch.randn(6, 1, 8, generator=draw, requires_grad=True)
    weight = torch.randn(50, 8, generator=draw)
    gradient = torch.randn(1, 6, 50, generator=draw).transpose(0, 1)
    output = LinearWithFrozenWeight.apply(x, weight, None, False, None)
    with Operators() as operators:
        output.backward(gradient)
    assert x.grad is not None
    return x.grad, operators.names


def test_a_frozen_layer_multiplies_its_gradient_in_one_product() -> None:
    with nemo_session():
        from pipeline.training.nemo.patches.performance import fast_training

        slow, slow_operators = frozen_output_gradient()
        with fast_training():
            flat, operators = frozen_output_gradient()
        _, operators_after = frozen_output_gradient()
    assert torch.allclose(flat, slow, atol=1e-6)
    assert "aten.mm.default" in operators
    assert "aten.bmm.default" not in operators
    assert "aten.bmm.default" in slow_operators  # Megatron's own; else the mend can go
    assert operators_after == slow_operators


def test_an_adapter_added_in_place_computes_what_nemo_does(base: Path) -> None:
    """Outputs and every gradient, of all layers, with adapters that are not zero."""
    ids = torch.arange(10, 30)[None]
    found = []
    with nemo_session():
        from nemo.collections.llm import peft

        from pipeline.training.nemo.patches.performance import fast_training

        for block in (nullcontext(), fast_training()):
            model = nemo.model_for(base / "hf")
            model.trainer = nemo.connect(model)
            nemo.load_weights(model.trainer, base)
            peft.LoRA(dim=4, alpha=8, dropout=0.0)(model)
            draw = torch.Generator().manual_seed(0)
            trained = [p for n, p in model.module.named_parameters() if ".adapter." in n]
            for parameter in trained:
                parameter.requires_grad_().data.normal_(std=0.1, generator=draw)
            with block:
                output = model.module(ids, torch.arange(20)[None], attention_mask=None)
                output.square().sum().backward()
            found.append([output.detach(), *(p.grad for p in trained)])
    assert len(found[0]) == 1 + 2 * 4 * 2  # two matrices on four layers, twice
    for ours, nemos in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(ours, nemos, rtol=1e-4, atol=1e-4 * float(nemos.abs().max()))


def test_training_imports_nothing_that_it_does_not_use(base: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pipeline.training import workers; from pipeline.training.job import Job; "
        "workers.train_in_processes(Job.from_json(sys.argv[1]), lambda point: None); "
        "print([m for m in ('modelopt', 'torchmetrics', 'sklearn', 'wandb') if m in sys.modules])"
    )
    command = [sys.executable, "-c", code, make_job(base, tmp_path, max_steps=1).to_json()]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_trained_model_does_not_stay_in_memory(base: Path, tmp_path: Path) -> None:
    gc.unfreeze()  # what others froze
    frozen = gc.get_freeze_count()  # Python's own
    # A test that trains without patches leaves one: ModelOpt's import keeps the stack it came from.
    before = {id(model) for model in _megatron_models()}
    train(make_job(base, tmp_path, max_steps=1))
    assert not [model for model in _megatron_models() if id(model) not in before]
    # On Python 3.12 garbage stays to which what is frozen refers: a model whose run was stopped.
    assert gc.get_freeze_count() < frozen + 10_000


def _megatron_models() -> list[Any]:
    gc.collect()
    return [o for o in gc.get_objects() if type(o).__name__ == "MegatronParallel"]


def test_a_trained_model_is_not_copied_to_the_host(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is on disk by then, and its memory goes with it."""
    copied: list[torch.nn.Module] = []
    monkeypatch.setattr(torch.nn.Module, "cpu", lambda self: copied.append(self) or self)
    train(make_job(base, tmp_path, max_steps=1))
    assert not copied


def test_the_gradient_of_a_fused_loss_is_contiguous_as_its_kernel_needs() -> None:
    """As Megatron takes it: [sequence, batch] from the loss, [batch, sequence] to the mask."""
    with nemo_session():
        from pipeline.training.nemo.patches.performance import contiguous_gradient

    probe = _Strides()
    for wrap in (lambda function: function, contiguous_gradient):
        logits = torch.randn(5, 3, requires_grad=True)
        wrap(probe)(logits).transpose(0, 1).contiguous().square().sum().backward()
    assert probe.contiguous == [False, True]


def test_only_a_trained_weight_needs_a_gradients_transpose() -> None:
    """Of Transformer Engine's, which a GPU has: here what its FP8 quantizer is asked for."""
    with nemo_session():
        from pipeline.training.nemo.patches.performance import _rows_alone

    def transposed(*, trained: bool, bias: bool) -> bool:
        asked = {"rowwise": True, "columnwise": True}
        quantizer = SimpleNamespace(set_usage=lambda **usage: asked.update(usage))
        ctx = SimpleNamespace(requires_wgrad=trained, use_bias=bias)
        assert _rows_alone(lambda *given: given[1])(ctx, "gradient", False, quantizer) == "gradient"
        assert asked["rowwise"]
        return asked["columnwise"]

    assert transposed(trained=True, bias=False)
    assert transposed(trained=False, bias=True)  # whose gradient comes with the transpose
    assert not transposed(trained=False, bias=False)


class _Strides:
    """The identity, noting whether its gradient lies in memory as [rows, columns]."""

    def __init__(self) -> None:
        self.contiguous: list[bool] = []

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        seen = self.contiguous

        class Identity(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
                return x.view_as(x)

            @staticmethod
            def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
                seen.append(grad.is_contiguous())
                return grad

        return Identity.apply(x)


def test_an_adapter_gathers_tokens_itself_where_their_gradient_would_be_lost() -> None:
    with nemo_session():
        from pipeline.training.nemo.patches.lora_sequence_parallel import gathering

    given = gathering(lambda layer: (False, 8, 16, True, True))
    with_norm = SimpleNamespace(return_layernorm_output_gathered=True)
    assert given(with_norm) == (False, 8, 16, False, True)
    assert not with_norm.return_layernorm_output_gathered
    for other in (SimpleNamespace(), SimpleNamespace(return_layernorm_output_gathered=False)):
        assert given(other) == (False, 8, 16, True, True)


def test_an_adapter_starts_from_the_seed_and_its_layer_alone(base: Path) -> None:
    found = []
    with nemo_session():
        from nemo.collections.llm import peft

        from pipeline.training.nemo.patches.lora_init import seeded_lora_init

        for seed, drawn_before in ((0, 0), (0, 5), (1, 0)):
            model = nemo.model_for(base / "hf")
            model.trainer = nemo.connect(model)
            torch.rand(drawn_before)
            with seeded_lora_init(seed):
                peft.LoRA(dim=4, alpha=8, dropout=0.0)(model)
            weights = {n: p for n, p in model.module.named_parameters() if "linear_in" in n}
            found.append([w.detach().clone() for w in weights.values()])
    first, again, other = found
    assert all(map(torch.equal, first, again))
    assert not any(map(torch.equal, first, other))
    assert not torch.equal(first[0], first[len(first) // 2])  # the same layer, one further up


@pytest.mark.parametrize("method", ["lora", "sft"])
def test_packed_rows_train_as_padded_ones_do(method: str, base: Path, tmp_path: Path) -> None:
    runs = []
    for pack_length in (None, 48):
        folder = tmp_path / str(pack_length)
        folder.mkdir()
        job = make_job(base, folder, method=method, pack_length=pack_length, max_steps=6)
        trained = train(job)
        runs.append([(p.loss, p.grad_norm, p.validation_loss or 0.0) for p in trained.curve])
    for padded, packed in zip(*runs, strict=True):
        assert packed == pytest.approx(padded, rel=1e-4)


def test_rows_of_a_pack_do_not_see_one_another(base: Path) -> None:
    """A row changed leaves the losses of all other rows as they were, to the last bit."""
    first = TokenRows.of([(range(10, 20), [1] * 10), (range(20, 32), [1] * 12)])
    other = TokenRows.of([(range(40, 50), [1] * 10), (range(20, 32), [1] * 12)])
    found = []
    with nemo_session():
        from nemo.collections.llm.gpt.model.base import gpt_forward_step

        from pipeline.training.nemo.data import packed_tensors

        model = nemo.model_for(base / "hf")
        trainer = nemo.connect(model)
        nemo.load_weights(trainer, base)
        device = next(model.parameters()).device
        on_host = ("cu_seqlens_argmin", "max_seqlen")
        for rows in (first, other):
            batch = packed_tensors(rows, [np.array([0, 1])], length=64)
            batch = {n: t if n in on_host else t.to(device) for n, t in batch.items()}
            with torch.no_grad():
                found.append(gpt_forward_step(model, batch)[0])
    assert torch.equal(found[0][9:20], found[1][9:20])
    assert not torch.equal(found[0][:9], found[1][:9])
