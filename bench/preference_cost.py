"""CPU time of a step of each preference objective beside the same step of supervised fine-tuning.

    python -m bench.preference_cost

The same rows, settings and process for all; runs take turns, and the median step of each run
counts. The reference of DPO and KTO is computed once, before the first step: of_sft_with_reference
shares its time among the steps of EPOCHS epochs, the default. Writes
bench/results/preference_cost.json.
"""

import json
import os
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.origin import origin
from pipeline.config.finetune import OBJECTIVES
from pipeline.config.model_defaults import EPOCHS
from pipeline.core.monkeypatch import Replacement, replaced
from pipeline.training.batches import TokenRows
from pipeline.training.job import Job, Point
from pipeline.training.preference import PreferenceRows, Side
from pipeline.training.workers import train_in_processes
from tests.integration.training_case import make_base, make_job

PAIRS, STEPS, ROUNDS, BATCH = 64, 9, 2, 8
RESULT = Path(__file__).parent / "results" / "preference_cost.json"


def sides() -> list[tuple[Side, Side]]:
    """Prompts of 40 tokens with answers of 40 to 60."""
    draw = np.random.default_rng(0)
    pairs: list[tuple[Side, Side]] = []
    for _ in range(PAIRS):
        prompt = draw.integers(10, 60, 40).tolist()
        answers = [draw.integers(10, 60, draw.integers(40, 60)).tolist() for _ in range(2)]
        good, bad = ((prompt + a, [0] * len(prompt) + [1] * len(a)) for a in answers)
        pairs.append((good, bad))
    return pairs


def job_of(base: Path, folder: Path, objective: str, method: str) -> Job:
    preference = {"beta": OBJECTIVES[objective].beta}
    job = make_job(
        base, folder, objective=objective, preference=preference, method=method, max_steps=STEPS,
        warmup_steps=0, global_batch_size=BATCH, micro_batch_size=BATCH, learning_rate=1e-5,
        min_learning_rate=1e-6, checkpoint_every=1000, validate_every=1000,
    )  # fmt: skip
    pairs = sides()
    kind = OBJECTIVES[objective].rows
    if kind == "pairs":
        PreferenceRows.of_pairs(pairs).save(folder / "train")
    elif kind == "labels":
        labelled = [(pair[i % 2], 1 - i % 2) for i, pair in enumerate(pairs)]
        PreferenceRows.of_labels(labelled, max_length=job.max_length).save(folder / "train")
    else:
        TokenRows.of(good for good, _ in pairs).save(folder / "train")
    return replace(job, validation_rows=None)


def measure(base: Path, folder: Path, objective: str, method: str) -> tuple[float, float]:
    """CPU seconds of a step, the median, and of the reference."""
    from pipeline.training.nemo.objectives import Preference

    marks, compared = [time.process_time()], [0.0]
    compare = Preference.on_train_start

    def timed(*arguments: Any) -> None:
        begin = time.process_time()
        compare(*arguments)
        compared.append(time.process_time() - begin)

    def mark(_: Point) -> None:
        marks.append(time.process_time())

    with replaced([Replacement(Preference, "on_train_start", timed)]):
        train_in_processes(job_of(base, folder, objective, method), mark)
    steps = np.diff(marks)
    return float(statistics.median(steps[1:])), compared[-1]


def _shares(
    times: list[tuple[float, float]], sft: list[tuple[float, float]], steps: float
) -> dict[str, float]:
    """Of a step of supervised fine-tuning, without and with the reference, shared among `steps`."""
    pairs = [
        (step / plain, (step + compared / steps) / plain)
        for (step, compared), (plain, _) in zip(times, sft, strict=True)
    ]
    alone, whole = (statistics.median(values) for values in zip(*pairs, strict=True))
    return {"of_sft": round(alone, 3), "of_sft_with_reference": round(whole, 3)}


def main() -> None:
    load = os.getloadavg()[0]
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    with tempfile.TemporaryDirectory() as place:
        base = make_base(Path(place) / "model", hidden=256, layers=4)
        for method in ("lora", "sft"):
            for turn in range(ROUNDS + 1):  # the first warms up
                for objective in OBJECTIVES:
                    folder = Path(place) / f"{method}-{turn}-{objective}"
                    step = measure(base, folder, objective, method)
                    if turn:
                        found.setdefault(method, {}).setdefault(objective, []).append(step)
    steps_of_default = EPOCHS * PAIRS / BATCH
    result: dict[str, Any] = {
        method: {
            name: {
                "step_ms": round(1000 * statistics.median(step for step, _ in times), 1),
                **_shares(times, steps["sft"], steps_of_default),
            }
            for name, times in steps.items()
        }
        for method, steps in found.items()
    }
    result = {
        **origin("python -m bench.preference_cost", ("nemo_toolkit", "megatron-core", "torch")),
        "load_average": {"before": round(load, 2), "after": round(os.getloadavg()[0], 2)},
        "pairs": PAIRS,
        "steps": STEPS,
        "rounds": ROUNDS,
        "epochs_of_reference": EPOCHS,
        **result,
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
