"""Fine-tune a model from Python and see how well it answers: paths in, paths out.

    python -m examples.python_api --out /tmp/support
    python -m examples.python_api --out /tmp/mine --model /models/Llama-3.2-1B --data /data/chats

Without --model and --data it takes the bundled model and conversations. The data folder holds
train*.jsonl and test*.jsonl, in any format that `stage=prepare` reads. Each stage makes one
artifact, a folder below --out. Start the script again to resume: what is up to date is kept, and a
stopped training continues from its newest checkpoint.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.config.defaults import default_tree
from pipeline.config.schema import load
from pipeline.core.artifact import Artifact
from pipeline.orchestration.runner import run_stage

STAGES = ("prepare", "import", "finetune", "merge", "quantize", "evaluate")


def fine_tune(out: Path, changes: Mapping[str, Any]) -> dict[str, Artifact]:
    """Run the stages up to the evaluation; the artifact of each.

    changes: options by group and values by dotted name, as in docs/settings.md.

    Raises:
        PipelineError: a setting is wrong, the data cannot be used, a proof fails: what to do next.
    """
    tree = default_tree({"artifacts": out, "tracking.enabled": False, **changes})
    config = load(tree)
    return {stage: run_stage(stage, tree, config) for stage in STAGES}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the artifacts")
    parser.add_argument(
        "--model", type=Path, help="a Hugging Face folder; default: the bundled one"
    )
    parser.add_argument(
        "--data", type=Path, help="a folder of conversations; default: the bundled one"
    )
    parser.add_argument("--max-steps", type=int, default=20, help="of the optimizer")
    parser.add_argument("--max-new-tokens", type=int, default=64, help="of an answer")
    given = parser.parse_args()
    changes: dict[str, Any] = {
        "finetune.max_steps": given.max_steps,
        "finetune.warmup_steps": given.max_steps // 10,
        "quantize": "none",
        "evaluate.max_new_tokens": given.max_new_tokens,
        # A few steps reach no gate: here the figures are only printed.
        "evaluate.gate.learned": None,
        "evaluate.gate.reached": None,
    }
    if given.model:
        changes |= {"model": "local", "model.name": given.model.name, "model.path": given.model}
    if given.data:
        changes |= {"data": "files", "data.folder": given.data}
        changes |= {"data.train": ["train*.jsonl"], "data.test": ["test*.jsonl"]}
    made = fine_tune(given.out, changes)
    figures = made["evaluate"].manifest.metrics
    before, after = figures["answer_loss/base"], figures["answer_loss/tuned"]
    print(f"loss on the test answers: {before:.2f} → {after:.2f}")
    print(f"exact match: {figures['exact_match/base']:.1%} → {figures['exact_match/tuned']:.1%}")
    print(f"the tuned model, as a Hugging Face folder: {made['merge'].path}")


if __name__ == "__main__":
    main()
