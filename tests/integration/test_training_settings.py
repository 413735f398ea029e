"""Settings of a fine-tune on the real NeMo and Megatron-Core: each does what it says, and resumes.

One process imports NeMo once for all of them.
"""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline.core.artifact import Artifact
from pipeline.engines.hf.lora import LoraHfSession
from pipeline.models.architecture import read_shape
from pipeline.orchestration import compose
from pipeline.stages import finetune, merge
from pipeline.training import workers as launch
from pipeline.training.job import Job, Point, Trained
from pipeline.training.length import decay_of, warmup_of
from pipeline.training.nemo import models as nemo
from pipeline.training.nemo.lora import AdapterLayer, adapter_layers
from pipeline.training.nemo.session import nemo_session
from tests.finetune_settings import finetune_settings
from tests.integration.training_case import inputs, make_base, make_job

STEPS, WARMUP, PEAK, LEAST = 40, 5, 1e-3, 1e-4


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("model"))


def train(job: Job, report: Callable[[Point], None] = lambda point: None) -> Trained:
    return launch.train_in_processes(job, report)


def figures(trained: Trained) -> list[tuple[float, ...]]:
    return [(p.loss, p.grad_norm, p.learning_rate, p.validation_loss or 0) for p in trained.curve]


def layers(base: Path, job: Job) -> list[AdapterLayer]:
    with nemo_session():
        return adapter_layers(nemo.open_checkpoint(base, adapter=job.out))


def interrupted(job: Job, *steps: int) -> Trained:
    """Train, stopped at each of the steps and started again."""
    for step in steps:

        def stop(point: Point, step: int = step) -> None:
            if point.step == step:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train(job, stop)
    return train(job)


@pytest.mark.parametrize(
    "changes",
    [
        # The first adapters of the model are in its feed-forward part, behind a frozen input.
        {"target_modules": ["mlp"], "dropout": 0.1},
        {"method": "sft", "pack_length": 48},
    ],
)
def test_activations_that_are_computed_again_give_the_same_losses(
    changes: dict[str, Any], base: Path, tmp_path: Path
) -> None:
    runs = [
        figures(train(make_job(base, tmp_path / kind, max_steps=5, recompute=kind, **changes)))
        for kind in ("none", "selective", "full")
    ]
    for again in runs[1:]:
        for one, other in zip(again, runs[0], strict=True):
            assert one == pytest.approx(other, rel=1e-6)


def test_activations_are_computed_again(base: Path, tmp_path: Path) -> None:
    """Full: a layer runs twice a micro-batch. Selective: its feed-forward part does."""
    from megatron.core.transformer.attention import SelfAttention
    from megatron.core.transformer.mlp import MLP

    found = {}
    for kind in ("none", "selective", "full"):
        calls: Counter[str] = Counter()
        with pytest.MonkeyPatch.context() as patch:
            for part in (SelfAttention, MLP):
                forward = part.forward

                def counted(
                    self: Any, *given: Any, f: Any = forward, calls: Any = calls, **more: Any
                ) -> Any:
                    calls[type(self).__name__] += self.training
                    return f(self, *given, **more)

                patch.setattr(part, "forward", counted)
            train(make_job(base, tmp_path / kind, max_steps=1, warmup_steps=0, recompute=kind))
        found[kind] = calls
    once = found["none"]["MLP"]
    assert found["selective"] == {"SelfAttention": once, "MLP": 2 * once}
    assert found["full"] == {"SelfAttention": 2 * once, "MLP": 2 * once}


def test_experts_are_computed_again(tmp_path: Path) -> None:
    base, found, losses = make_base(tmp_path / "base", family="Mixtral"), {}, []
    with nemo_session():
        from megatron.core.transformer.moe.experts import SequentialMLP
    for kind in ("none", "selective"):
        calls: Counter[str] = Counter()
        forward = SequentialMLP.forward

        def counted(
            self: Any, *given: Any, f: Any = forward, calls: Any = calls, **more: Any
        ) -> Any:
            calls["experts"] += self.training
            return f(self, *given, **more)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(SequentialMLP, "forward", counted)
            job = make_job(base, tmp_path / kind, max_steps=2, warmup_steps=0, recompute=kind)
            losses.append(figures(train(job)))
        found[kind] = calls["experts"]
    assert found["selective"] == 2 * found["none"] > 0
    for one, other in zip(*losses, strict=True):
        assert one == pytest.approx(other, rel=1e-6)


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_an_adapter_on_a_part_of_the_layers(method: str, base: Path, tmp_path: Path) -> None:
    """The other rows of a fused layer stay as they were; what it does is the same when resumed."""
    chosen: dict[str, Any] = {
        "method": method, "target_modules": ["q_proj", "up_proj"], "max_steps": 6, "rank": 4,
        "rslora": True, "lora_plus_ratio": 8.0, "weight_decay": 0.1, "dropout": 0.1,
    }  # fmt: skip
    whole = make_job(base, tmp_path / "whole", **chosen)
    trained = train(whole)
    again = interrupted(make_job(base, tmp_path / "halved", **chosen), 5)
    assert again.resumed_from == 3
    assert figures(again) == figures(trained)
    shape = read_shape(whole.hf)
    outputs = shape.size("q") + shape.size("ffn")
    each = 2 * 4 * shape.hidden + 4 * outputs + (outputs if method == "dora" else 0)
    assert trained.trainable_parameters == shape.layers * each
    found = layers(base, whole)
    names = ("self_attention.linear_qkv", "mlp.linear_fc1")
    assert [layer.name for layer in found] == [*names] * shape.layers
    for layer in found:
        assert layer.scale == pytest.approx(16 / 4**0.5)
        if layer.name == names[0]:  # group by group: two query heads, a key and a value head
            rows = layer.b.view(shape.kv_heads, -1, shape.head_dim, layer.b.shape[1])
            changed, other = rows[:, :2], rows[:, 2:]
        else:
            other, changed = layer.b.chunk(2)  # gate, up
        assert changed.abs().min() > 0
        assert other.abs().max() == 0
        if layer.magnitude is not None:
            kept = layer.b.abs().amax(1) == 0
            norms = torch.linalg.vector_norm(layer.weight, dim=1)
            assert torch.allclose(layer.magnitude[kept], norms[kept], rtol=1e-6)
            assert not torch.allclose(layer.magnitude[~kept], norms[~kept], rtol=1e-6)


@pytest.mark.parametrize("tied", [False, True])
def test_modules_that_are_trained_whole(tied: bool, tmp_path: Path) -> None:
    """The embedding and the output layer change, are kept with the adapter, and resume."""
    base = make_base(tmp_path / "base", tied=tied)
    saved = ("embed_tokens",) if tied else ("embed_tokens", "lm_head")
    chosen: dict[str, Any] = {"target_modules": ["q_proj"], "max_steps": 6, "rank": 4}
    whole = make_job(base, tmp_path / "whole", modules_to_save=saved, **chosen)
    trained = train(whole)
    again = interrupted(make_job(base, tmp_path / "halved", modules_to_save=saved, **chosen), 5)
    assert again.resumed_from == 3
    assert figures(again) == figures(trained)
    plain = train(make_job(base, tmp_path / "plain", **chosen))
    shape = read_shape(whole.hf)
    tables = len(saved) * shape.vocab * shape.hidden
    assert trained.trainable_parameters == plain.trainable_parameters + tables
    assert trained.curve[-1].loss < plain.curve[-1].loss
    with nemo_session():
        model = nemo.open_checkpoint(base, adapter=whole.out)
        assert len(model.untrained) == len(saved)
        weights = dict(model.module.named_parameters())
        for name, before in model.untrained.items():
            assert not torch.equal(weights[name], before)


def test_lora_plus_multiplies_the_rate_of_b_at_every_step(base: Path, tmp_path: Path) -> None:
    """The first step of Adam is the rate in size, whatever the gradient."""
    moved = {}
    for ratio in (1.0, 16.0):
        job = make_job(
            base, tmp_path / str(ratio), max_steps=1, warmup_steps=0, lora_plus_ratio=ratio,
            learning_rate=1e-3, weight_decay=0.0,
        )  # fmt: skip
        assert train(job).curve[0].learning_rate == 1e-3  # of A
        moved[ratio] = [layer.b for layer in layers(base, job)]
    for plain, plus in zip(moved[1.0], moved[16.0], strict=True):
        assert torch.allclose(plus, 16 * plain, rtol=1e-4)
    with nemo_session():
        from pipeline.training.nemo.schedules import set_rates
    groups = [{"lr": 2e-4, "pre_lr_mult": 1.0}, {"lr": 1e-4, "pre_lr_mult": 16.0}]
    assert set_rates(groups, 16.0) == 2e-4
    assert groups[1]["lr"] == 16 * 2e-4


def test_a_run_ends_early_and_keeps_its_best_step(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before and after a checkpoint it decides alike, and keeps the same weights."""
    with nemo_session():
        from pipeline.training.nemo import callbacks
    scripted = {2: 3.0, 4: 2.0, 6: 2.5, 8: 2.2, 10: 1.0}
    monkeypatch.setattr(
        callbacks.Recorder,
        "_validation_loss",
        lambda self, trainer: (scripted[trainer.global_step], {}),
    )
    settings: dict[str, Any] = {
        "schedule": "constant", "warmup_steps": 0, "validate_every": 2, "checkpoint_every": 3,
    }  # fmt: skip
    ending = settings | {"max_steps": 10, "patience": 2, "keep": "best"}
    whole = make_job(base, tmp_path / "whole", **ending)
    trained = train(whole)
    assert [p.step for p in trained.curve] == list(range(1, 9))
    kept = [layer.b for layer in layers(base, whole)]
    alone = make_job(base, tmp_path / "alone", **settings | {"max_steps": 4})
    train(alone)
    assert all(map(torch.equal, kept, [layer.b for layer in layers(base, alone)]))
    halved = make_job(base, tmp_path / "halved", **ending)
    again = interrupted(halved, 5, 7)
    assert again.resumed_from == 6
    assert figures(again) == figures(trained)
    assert all(map(torch.equal, kept, [layer.b for layer in layers(base, halved)]))
    assert len(list(halved.scratch.with_name("best").iterdir())) <= 1


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant", "wsd"])
@pytest.mark.parametrize("warmup", [0, WARMUP])
def test_the_rates_are_those_of_torch_and_transformers(kind: Any, warmup: int) -> None:
    import transformers.optimization as hf
    from torch.optim import lr_scheduler as curves

    settings = finetune_settings(
        max_steps=STEPS, warmup_steps=warmup, learning_rate=PEAK, min_learning_rate=LEAST,
        schedule=kind, decay_share=0.25,
    )  # fmt: skip
    assert (warmup_of(settings, STEPS), decay_of(settings, STEPS)) == (warmup, 10)
    with nemo_session():
        from pipeline.training.nemo.schedules import schedule

        make = schedule(settings).scheduler
        ours = rates(lambda optimizer: make(None, optimizer)["lr_scheduler"]["scheduler"])
    left, share = STEPS - warmup, LEAST / PEAK

    def of_torch(optimizer: Any) -> Any:
        rise = curves.LinearLR(optimizer, 1 / (warmup + 1), total_iters=warmup)
        after = {
            "cosine": lambda: [curves.CosineAnnealingLR(optimizer, left, eta_min=LEAST)],
            "linear": lambda: [curves.LinearLR(optimizer, 1.0, share, total_iters=left)],
            "constant": lambda: [curves.ConstantLR(optimizer, 1.0)],
            "wsd": lambda: [
                curves.ConstantLR(optimizer, 1.0),
                curves.LinearLR(optimizer, 1.0, share, total_iters=10),
            ],
        }[kind]()
        parts = [rise, *after] if warmup else after
        ends = [warmup, STEPS - 10] if warmup else [STEPS - 10]
        return curves.SequentialLR(optimizer, parts, ends[: len(parts) - 1])

    def of_transformers(optimizer: Any) -> Any:
        common: dict[str, Any] = {"num_warmup_steps": warmup}
        whole = common | {"num_training_steps": STEPS}
        return {
            "cosine": lambda: hf.get_cosine_with_min_lr_schedule_with_warmup(
                optimizer, **whole, min_lr=LEAST
            ),
            "linear": lambda: hf.get_polynomial_decay_schedule_with_warmup(
                optimizer, **whole, lr_end=LEAST, power=1.0
            ),
            "constant": lambda: hf.get_constant_schedule_with_warmup(optimizer, **common),
            "wsd": lambda: hf.get_wsd_schedule(
                optimizer, **whole, num_decay_steps=10, min_lr_ratio=share, decay_type="linear"
            ),
        }[kind]()

    assert ours == pytest.approx(rates(of_torch), rel=1e-9)
    assert ours[:1] == [PEAK / (warmup + 1)]
    # Its warm-up begins at zero, which loses a step.
    assert ours[warmup:] == pytest.approx(rates(of_transformers)[warmup:], rel=1e-9)


def rates(make: Callable[[Any], Any]) -> list[float]:
    """The learning rate of each step."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=PEAK)
    scheduler, found = make(optimizer), []
    for _ in range(STEPS):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_two_epochs_on_chosen_layers_merged_and_taken_by_an_engine(
    base: Path, tmp_path: Path
) -> None:
    settings = (
        "finetune.max_steps=null finetune.epochs=2 finetune.global_batch_size=8 "
        "finetune.micro_batch_size=8 finetune.warmup_steps=2 finetune.validate_every=10 "
        "finetune.learning_rate=1e-2 finetune.keep=best finetune.adapter.rank=4 "
        "finetune.adapter.alpha=8 finetune.adapter.rslora=true "
        "finetune.adapter.target_modules=[q_proj,v_proj]"
    ).split()
    config = compose.from_command_line(["stage=finetune", *settings])[2]
    given, out, merged = inputs(base, tmp_path / "data"), tmp_path / "out", tmp_path / "merged"
    out.mkdir()
    merged.mkdir()
    outcome = finetune.run(config, given, out)
    assert outcome.proof["length"] == "30 steps of 8 rows = 2 epochs of 120 rows"
    curve = json.loads((out / "curve.json").read_text())
    lowest = min((p for p in curve if p["validation_loss"]), key=lambda p: p["validation_loss"])
    assert outcome.metrics["kept_step"] == lowest["step"]
    assert outcome.metrics["validation_loss"] == lowest["validation_loss"]
    assert f"step {lowest['step']} of 30 was kept: its validation loss" in outcome.proof["kept"]
    manifest: Any = SimpleNamespace(kind=outcome.kind, stage="finetune", digest="made")
    merge.run(config, given | {"finetune": Artifact(out, manifest)}, merged)
    adapter = json.loads((merged / "adapter/adapter_config.json").read_text())
    found = (adapter["target_modules"], adapter["use_rslora"], adapter["lora_alpha"], adapter["r"])
    assert found == (["q_proj", "v_proj"], True, 8, 4)
    session = LoraHfSession(base.parent / "source", slots=1, max_seq_len=32)
    session.add_adapter("tuned", merged / "adapter")
