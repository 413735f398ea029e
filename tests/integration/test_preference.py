"""Preference objectives on NeMo and Megatron-Core, compared with the same in plain torch.

The other computation is transformers' model in float32 on the same rows, without padding, with the
losses written from the papers.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from pipeline.core.errors import ArtifactError, DataError
from pipeline.data.dataset import Row, write_split
from pipeline.models.architecture import read_shape
from pipeline.orchestration import compose
from pipeline.stages import finetune
from pipeline.training import workers as launch
from pipeline.training.batches import SampleOrder
from pipeline.training.job import Checkpoints, Job, Point, Trained
from pipeline.training.nemo import weight_map
from pipeline.training.preference import PreferenceRows, Side
from tests.integration.training_case import MAX_POSITIONS, inputs, make_base, make_job

BETAS = {"dpo": 0.3, "kto": 0.3, "simpo": 2.0, "orpo": None}
OBJECTIVES = list(BETAS)


def sides(count: int, seed: int) -> list[tuple[Side, Side]]:
    """A better and a worse answer to one question; rows differ in every length."""
    draw = np.random.default_rng(seed)
    pairs: list[tuple[Side, Side]] = []
    for _ in range(count):
        question = draw.integers(10, 60, draw.integers(2, 11)).tolist()
        good = [question[0] + i for i in range(1, int(draw.integers(3, 9)))]
        bad = draw.integers(10, 60, draw.integers(2, 9)).tolist()
        zeros = [0] * len(question)
        pairs.append(
            ((question + good, zeros + [1] * len(good)), (question + bad, zeros + [1] * len(bad)))
        )
    return pairs


def rows_of(objective: str, count: int, seed: int) -> PreferenceRows:
    pairs = sides(count, seed)
    if objective != "kto":
        return PreferenceRows.of_pairs(pairs)
    labels = np.random.default_rng(seed).integers(0, 2, count).tolist()
    answers = [(pair[1 - label], label) for pair, label in zip(pairs, labels, strict=True)]
    return PreferenceRows.of_labels(answers, max_length=MAX_POSITIONS)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("model"))


def make_preference_job(base: Path, folder: Path, objective: str, **changes: Any) -> Job:
    more = {"label_smoothing": 0.1} if objective == "dpo" else {}
    weights = {"desirable_weight": 1.2, "undesirable_weight": 0.7}
    preference = {"beta": BETAS[objective], **more, **weights}
    job = make_job(base, folder, objective=objective, preference=preference, **changes)
    rows_of(objective, 40, seed=5).save(folder / "train")
    rows_of(objective, 11, seed=6).save(folder / "validation")
    return job


def train(job: Job) -> Trained:
    return launch.train_in_processes(job, lambda point: None)


def capture(job: Job, monkeypatch: pytest.MonkeyPatch) -> tuple[Trained, dict[str, Any]]:
    """Train, and take the weights before the last step and the gradients in it."""
    from pipeline.training.nemo.session import nemo_session

    found: dict[str, Any] = {"weights": {}, "gradients": {}}
    with nemo_session():
        from pipeline.training.nemo.callbacks import Recorder

        begin, end = Recorder.on_train_batch_start, Recorder.on_train_batch_end

        def named(model: Any) -> Iterator[tuple[str, Any]]:
            for name, parameter in model.named_parameters():
                short = name.replace(".to_wrap.", ".")
                yield short[min(short.find(x) for x in STARTS if x in short) :], parameter

        def on_start(self: Any, trainer: Any, model: Any, *rest: Any) -> None:
            found["weights"] = {n: p.detach().clone() for n, p in named(model)}
            begin(self, trainer, model, *rest)

        def on_end(self: Any, trainer: Any, model: Any, *rest: Any) -> None:
            found["gradients"] = {
                n: p.main_grad.clone() for n, p in named(model) if p.requires_grad
            }
            end(self, trainer, model, *rest)

        monkeypatch.setattr(Recorder, "on_train_batch_start", on_start)
        monkeypatch.setattr(Recorder, "on_train_batch_end", on_end)
    trained = train(job)
    monkeypatch.undo()
    return trained, found


STARTS = ("embedding.", "decoder.", "output_layer.")


def hf_model(base: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(
        base.parent / "source", dtype=torch.float32
    )


def log_probability(model: Any, ids: list[int], mask: list[int]) -> tuple[torch.Tensor, int]:
    """Of the tokens that count, summed; and their number."""
    logits = model(torch.tensor([ids[:-1]])).logits[0].double()
    chosen = logits.log_softmax(-1)[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]
    counted = torch.tensor(mask[1:])
    return (chosen * counted).sum(), int(counted.sum())


def sequence(rows: PreferenceRows, number: int) -> tuple[list[int], list[int]]:
    tokens = rows.sequences
    here = slice(int(tokens.starts[number]), int(tokens.starts[number + 1]))
    return tokens.ids[here].tolist(), tokens.mask[here].tolist()


def plain_loss(
    job: Job, model: Any, reference: Any, rows: PreferenceRows, batch: list[int]
) -> torch.Tensor:
    """The objective on the rows of a batch, as its paper has it."""
    settings, objective = job.settings.preference, job.settings.objective
    beta = settings.beta or 0.0
    losses = []

    def both(number: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        with torch.no_grad():
            old, _ = log_probability(reference, *sequence(rows, number))
        new, count = log_probability(model, *sequence(rows, number))
        return new, old, count

    if objective == "kto":
        with torch.no_grad():
            gains = [a - b for a, b, _ in (both(2 * row + 1) for row in batch)]
            moved = torch.stack(gains).mean().clamp(min=0)
        for row in batch:
            new, old, _ = both(2 * row)
            good = bool(rows.labels[row])
            weight = settings.desirable_weight if good else settings.undesirable_weight
            sign = 1 if good else -1
            losses.append(weight * (1 - torch.sigmoid(beta * sign * (new - old - moved))))
        return torch.stack(losses).mean()
    for row in batch:
        (good, old_good, n), (bad, old_bad, m) = both(2 * row), both(2 * row + 1)
        if objective == "dpo":
            lead = torch.sigmoid(beta * ((good - old_good) - (bad - old_bad)))
            smoothing = settings.label_smoothing
            losses.append(-(1 - smoothing) * lead.log() - smoothing * (1 - lead).log())
        elif objective == "simpo":
            lead = beta * good / n - beta * bad / m - settings.gamma
            losses.append(-torch.sigmoid(lead).log())
        else:
            p, q = (good / n).exp(), (bad / m).exp()
            ratio = torch.log(p / (1 - p)) - torch.log(q / (1 - q))
            losses.append(-good / n - settings.odds_weight * torch.sigmoid(ratio).log())
    return torch.stack(losses).mean()


@pytest.mark.parametrize("method", ["lora", "sft"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_losses_and_gradients_are_those_of_plain_torch(
    objective: str, method: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_preference_job(
        base, tmp_path, objective, method=method, max_steps=3, warmup_steps=0, clip_grad=1e6,
        learning_rate=1e-2 if method == "lora" else 2e-3, micro_batch_size=4,
    )  # fmt: skip
    trained, found = capture(job, monkeypatch)
    rows = PreferenceRows.load(tmp_path / "train")
    batch = SampleOrder(rows.lengths, 8, job.seed).rows(2).tolist()
    shape = read_shape(base / "hf")
    model, reference = hf_model(base), hf_model(base)
    weights, gradients = found["weights"], found["gradients"]

    def name_of(rule: weight_map.Rule) -> str:
        local = weight_map.local_name(shape, rule.megatron)
        return rule.megatron if rule.megatron in weights else local

    def adapter(rule: weight_map.Rule, which: str) -> str:
        return f"{rule.megatron.removesuffix('.weight')}.adapter.{which}.weight"

    scale = job.settings.adapter.alpha / job.settings.adapter.rank
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for rule in weight_map.rules(shape):
            weight = weights[name_of(rule)]
            if adapter(rule, "linear_in") in weights:
                a, b = (weights[adapter(rule, w)] for w in ("linear_in", "linear_out"))
                weight = weight + scale * b @ a
            for name, part in zip(rule.hf, rule.split(shape, weight), strict=True):
                parameters[name].copy_(part)
    loss = plain_loss(job, model, reference, rows, batch)
    loss.backward()
    assert trained.curve[-1].loss == pytest.approx(loss.item(), rel=1e-5)

    compared = 0
    for rule in weight_map.rules(shape):
        whole = rule.fuse(shape, [parameters[name].grad for name in rule.hf])
        if method == "sft":
            pairs = [(gradients[name_of(rule)], whole)]
        elif adapter(rule, "linear_in") in weights:
            a, b = (weights[adapter(rule, w)] for w in ("linear_in", "linear_out"))
            pairs = [
                (gradients[adapter(rule, "linear_in")], scale * b.T @ whole),
                (gradients[adapter(rule, "linear_out")], scale * whole @ a.T),
            ]
        else:
            continue
        for ours, plain in pairs:
            distance = torch.linalg.vector_norm(ours - plain) / torch.linalg.vector_norm(plain)
            assert float(distance) < 2e-5, rule.megatron
            compared += 1
    # Two layers of four products, each with A and B; or every tensor of the model.
    assert compared == (len(list(weight_map.rules(shape))) if method == "sft" else 16)


def numbers(trained: Trained) -> list[dict[str, float]]:
    """All figures of each step but the speed."""
    return [
        {k: v for k, v in p.values().items() if k != "tokens_per_second"} for p in trained.curve
    ]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_step_is_the_same_however_its_batch_is_cut(
    objective: str, base: Path, tmp_path: Path
) -> None:
    found = []
    for size in (8, 4, 1):
        job = make_preference_job(
            base, tmp_path / str(size), objective, method="sft", max_steps=4,
            micro_batch_size=size, learning_rate=2e-3, validate_every=2,
        )  # fmt: skip
        found.append(numbers(train(job)))
    for other in found[1:]:
        for ours, theirs in zip(found[0], other, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-6)
    last = found[0][-1]
    assert {"chosen_reward", "rejected_reward", "reward_margin", "reward_accuracy"} <= last.keys()
    assert {"validation_reward_accuracy", "validation_loss"} <= last.keys()
    assert ("divergence" in last) == (objective == "kto")
    assert last["loss"] < found[0][0]["loss"]


def test_ranks_that_share_the_rows_compute_the_same(base: Path, tmp_path: Path) -> None:
    one = make_preference_job(base, tmp_path / "one", "kto", max_steps=3, micro_batch_size=8)
    two = make_preference_job(
        base, tmp_path / "two", "kto", max_steps=3, micro_batch_size=2, processes=2
    )
    for ours, theirs in zip(numbers(train(one)), numbers(train(two)), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize(("objective", "method"), [("dpo", "sft"), ("kto", "lora")])
def test_stopped_at_any_step_it_resumes_to_the_same_figures(
    objective: str, method: str, base: Path, tmp_path: Path
) -> None:
    """The reference of a full fine-tune is gone after the first step, but for the checkpoint."""
    changes: dict[str, Any] = {"method": method, "dropout": 0.1, "max_steps": 8}
    whole = train(make_preference_job(base, tmp_path / "whole", objective, **changes))
    job = make_preference_job(base, tmp_path / "stopped", objective, **changes)

    def stop(point: Point) -> None:
        if point.step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        launch.train_in_processes(job, stop)
    again = train(job)
    assert again.resumed_from == 3
    assert numbers(again) == numbers(whole)
    newest = Checkpoints(job.scratch, job.identity).newest()
    assert newest
    file = newest / "reference.safetensors"
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(ArtifactError, match=r"remove .* to train from the first step"):
        train(job)


def preference_inputs(base: Path, folder: Path, objective: str) -> Any:
    found = inputs(base, folder)
    rows = []
    for i, ((good, mask), (bad, other)) in enumerate(sides(40, seed=7)):
        fields: dict[str, Any] = {"rejected": [], "rejected_ids": bad, "rejected_mask": other}
        if objective == "kto":
            fields = {"label": i % 2}
        rows.append(Row([], list(good), list(mask), f"made:{i}", **fields))
    for split, part in (("train", rows[8:]), ("validation", rows[:8])):
        write_split(folder, split, part, rows[0].kind)
    return found


@pytest.mark.parametrize("objective", ["orpo", "kto"])
def test_the_stage_trains_and_reports(objective: str, base: Path, tmp_path: Path) -> None:
    settings = (
        f"finetune.objective={objective} finetune.max_steps=6 finetune.global_batch_size=8 "
        "finetune.micro_batch_size=8 finetune.warmup_steps=0 finetune.validate_every=3"
    ).split()
    config = compose.from_command_line(["stage=finetune", *settings])[2]
    (tmp_path / "out").mkdir()
    found = preference_inputs(base, tmp_path / "dataset", objective)
    outcome = finetune.run(config, found, tmp_path / "out")
    curve = json.loads((tmp_path / "out" / "curve.json").read_text())
    assert [p["step"] for p in curve if "validation_reward_margin" in p] == [3, 6]
    assert all("reward_accuracy" in p and "figures" not in p for p in curve)
    assert outcome.metrics["validation_reward_margin"] == curve[-1]["validation_reward_margin"]

    config = compose.from_command_line(["stage=finetune", "finetune.objective=sft"])[2]
    (tmp_path / "other").mkdir()
    with pytest.raises(DataError, match=r"stage=prepare with finetune.objective=sft"):
        finetune.run(config, found, tmp_path / "other")
