"""Reports → a version in the MLflow registry, with a model card; champion if the gate passed.

The request is complete and content-addressed, so that the tracker can execute it (a version with
signature, figures and aliases) whenever the registry can be reached (tracking/client.py). The
tracker decides which version is champion, because only the registry knows which one has the alias.
What was trained, scored and exported comes from the artifacts, never from the current settings,
which may differ. This module does not import MLflow.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.config.schema import Config
from pipeline.core.artifact import Artifact, Outcome
from pipeline.core.errors import ArtifactError
from pipeline.core.stage import Stage
from pipeline.evaluation.metrics import gate_metric
from pipeline.optimization.formats import FORMATS

STAGE = Stage(
    version=2,
    libraries=("mlflow",),
)


REQUEST, CARD = "registration.json", "MODEL_CARD.md"


def run(config: Config, inputs: Mapping[str, Artifact], out: Path) -> Outcome:
    """Write registration.json and MODEL_CARD.md.

    Raises:
        ArtifactError: the artifacts were not made from one another.
    """
    _require_one_lineage(inputs)
    evaluate, trained = inputs["evaluate"], inputs["finetune"].manifest.config
    scores = json.loads((evaluate.path / "report.json").read_text())["models"]
    shipped = inputs["export"].manifest.proof["format"]
    gate = evaluate.manifest.failure
    metric = gate_metric()
    value = scores[shipped][metric.name]["value"]
    metrics = {
        f"{metric.name}/{name}": score[metric.name]["value"] for name, score in scores.items()
    }
    request = {
        "name": config.register_.name,
        # What the registry's champion rule compares, and how it says so.
        "metric": {
            "name": metric.name,
            "title": metric.title,
            "format": metric.format,
            "higher_is_better": metric.higher_is_better,
        },
        metric.name: value,
        "gate_passed": gate is None,
        "gate_reason": gate or "",
        "params": {
            "base": inputs["merge"].manifest.config["model"]["name"],
            "method": trained["finetune"]["method"],
            "format": shipped,
            "seed": str(trained["seed"]),
        },
        "metrics": metrics | _prefixed("benchmark", inputs["benchmark"].manifest.metrics),
        "tags": {
            metric.name: repr(value),  # unrounded: the next version is compared with it
            "format": shipped,
            "gate": "passed" if gate is None else "failed",
            "dataset": inputs[
                "prepare"
            ].manifest.digest,  # scores on the same dataset can be compared
            **{f"digest.{stage}": artifact.manifest.digest for stage, artifact in inputs.items()},
        },
        "artifacts": {stage: _location(artifact) for stage, artifact in inputs.items()},
        "serve": "python -m pipeline stage=serve",
    }
    (out / REQUEST).write_text(json.dumps(request, indent=1, sort_keys=True) + "\n")
    (out / CARD).write_text(_card(config.register_.name, inputs, scores, shipped))
    return Outcome(
        "registration",
        metrics={metric.name: value, "gate_passed": float(gate is None)},
        proof={"digests": {stage: artifact.manifest.digest for stage, artifact in inputs.items()}},
        measured=(REQUEST,),  # it has the benchmark's times
    )


def _require_one_lineage(inputs: Mapping[str, Artifact]) -> None:
    """Refuse artifacts of different weights: a stage that runs alone does not update later ones."""
    for stage, artifact in inputs.items():
        for source, digest in artifact.manifest.inputs.items():
            if source in inputs and digest != inputs[source].manifest.digest:
                raise ArtifactError(
                    f"{artifact.path} was made from another {source} than {inputs[source].path}: "
                    f"run `python -m pipeline stage={stage}` again with matching settings"
                )


def _location(artifact: Artifact) -> dict[str, Any]:
    manifest = artifact.manifest
    return {
        "kind": manifest.kind,
        "path": str(artifact.path),
        "digest": manifest.digest,
        "bytes": manifest.bytes,
    }


def _prefixed(prefix: str, metrics: Mapping[str, float]) -> dict[str, float]:
    return {f"{prefix}/{name}": value for name, value in metrics.items()}


def _card(
    name: str, inputs: Mapping[str, Artifact], scores: Mapping[str, Any], shipped: str
) -> str:
    """The model card in Markdown: what it is, how good it is, how it was made, where it is."""
    form = FORMATS[shipped].title
    gate, code = inputs["evaluate"].manifest.failure, inputs["merge"].manifest.code
    base = inputs["merge"].manifest.config["model"]["name"]
    data = inputs["prepare"].manifest.config["data"]["folder"]
    trained = inputs["finetune"].manifest.config
    settings, metric = trained["finetune"], gate_metric()
    method = {"lora": "LoRA", "dora": "DoRA", "sft": "full fine-tuning"}[settings["method"]]
    lines = [
        f"# {name}",
        "",
        f"{base} tuned by {method} on {data}, shipped as "
        f"**{form}** (`{shipped}`). Gate: **{'passed' if gate is None else f'failed ({gate})'}**.",
        "",
        f"| model | {metric.title} | 95 % interval |",
        "|---|--:|--:|",
    ]
    for model, score in scores.items():
        value, low, high = (metric.text(score[metric.name][k]) for k in ("value", "low", "high"))
        mark = "**" if model == shipped else ""
        lines.append(f"| {mark}{model}{mark} | {mark}{value}{mark} | {low} to {high} |")
    lines += [
        "",
        "Measured on held-out questions whose phrasings were not in the training data.",
        "",
        f"- Training: {settings['max_steps']} steps of {settings['global_batch_size']} "
        f"conversations, learning rate {settings['learning_rate']:g}, seed {trained['seed']}",
        f"- Code: {code.get('commit', 'unknown')}"
        + (" with uncommitted changes" if code.get("changed") else ""),
        "",
        "| artifact | MiB | sha256 | where |",
        "|---|--:|---|---|",
    ]
    for stage, artifact in inputs.items():
        manifest = artifact.manifest
        lines.append(
            f"| {stage} ({manifest.kind}) | {manifest.bytes / 2**20:.1f} "
            f"| `{manifest.digest[:12]}` | `{artifact.path}` |"
        )
    return "\n".join(lines) + "\n"
