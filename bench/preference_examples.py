"""The examples of docs/preference.md: each objective on the tuned demo model, with default rates.

    make demo
    python -m bench.preference_examples [--output bench/results/preference_examples.json]

Runs the stages from prepare to evaluate for each objective, in folders of their own below
artifacts/preference, and records what training and evaluation measured. What is up to date is
kept, so that an interrupted run resumes.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench.origin import ROOT, origin

ROWS = {"dpo": "pairs", "orpo": "pairs", "simpo": "pairs", "kto": "labels"}
STEP = ("finetune.global_batch_size=8", "finetune.micro_batch_size=8")
MEASURES = ("evaluate.metrics=[exact_match,token_f1,answer_loss]", "evaluate.batch_size=128",
            "evaluate.max_new_tokens=64", "evaluate.gate.base.metric=token_f1")  # fmt: skip
FIGURES = ("chosen_reward", "rejected_reward", "reward_margin", "reward_accuracy", "divergence",
           "answer_loss")  # fmt: skip


def run(objective: str, model: str, folder: Path) -> None:
    """Run the stages of an example; `model` is the tuned model's folder."""
    chosen = f"finetune.objective={objective}"
    data = ("data=files", "data.folder=data", f"data.train=[preference/{ROWS[objective]}.jsonl]",
            "data.test=[bank/test.jsonl]", "prepare.max_length=256", chosen)  # fmt: skip
    common = ("model=local", "model.name=harbor-preferred", f"model.path={model}",
              f"artifacts={folder}", "tracking.enabled=false")  # fmt: skip
    for stage, words in (
        ("prepare", data), ("import", ()), ("finetune", (chosen, *STEP)), ("merge", ()),
        ("quantize", ("quantize=none",)), ("evaluate", ("quantize=none", *MEASURES)),
    ):  # fmt: skip
        command = [sys.executable, "-m", "pipeline", f"stage={stage}", *common, *words]
        subprocess.run(command, cwd=ROOT, check=stage != "evaluate")  # the gate may refuse it


def measured(folder: Path) -> dict[str, Any]:
    """What the manifests of an example say."""
    tuned, answers = (
        json.loads((folder / stage / "manifest.json").read_text())
        for stage in ("finetune", "evaluate")
    )
    metrics, settings = tuned["metrics"], tuned["config"]["finetune"]

    def figures(before: str) -> dict[str, float]:
        named = {name: metrics.get(before + name) for name in FIGURES}
        return {name: round(value, 4) for name, value in named.items() if value is not None}

    return {
        "learning_rate": settings["learning_rate"],
        "steps": int(metrics["steps"]),
        "epochs": metrics["epochs"],
        "last_step": {"loss": round(metrics["train_loss"], 4), **figures("")},
        "validation": {"loss": round(metrics["validation_loss"], 4), **figures("validation_")},
        "test": {
            f"{name}_{when}": round(answers["metrics"][f"{name}/{model}"], 4)
            for name in ("exact_match", "answer_loss")
            for when, model in (("before", "base"), ("after", "tuned"))
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument(
        "--output", type=Path, default=ROOT / "bench/results/preference_examples.json"
    )
    parser.add_argument("--model", default="artifacts/merge", help="folder of the tuned model")
    parser.add_argument("--folder", type=Path, default=ROOT / "artifacts/preference")
    given = parser.parse_args()
    for objective in ROWS:
        run(objective, given.model, given.folder / objective)
    packages = ("nemo_toolkit", "megatron-core", "torch", "transformers")
    result = {
        **origin("python -m bench.preference_examples", packages),
        "objectives": {name: measured(given.folder / name) for name in ROWS},
    }
    given.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["objectives"], indent=1))


if __name__ == "__main__":
    main()
