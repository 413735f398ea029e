"""Reports → a version in the MLflow registry, with a model card; champion past the gate.

The request is complete and content-addressed, so that the tracker carries it out (a version with
signature, figures and aliases) whenever the registry can be reached (tracking/client.py). Which
version is champion is decided there, for only the registry knows who holds the alias. What was
trained, scored and exported is told by the artifacts, never by the present settings, which may be
others. Knows nothing of MLflow.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.config.schema import Config
from pipeline.core.artifact import Artifact, Outcome
from pipeline.core.errors import ArtifactError
from pipeline.core.stage import Stage
from pipeline.optimization.formats import FORMATS

STAGE = Stage(
    version=1,
    libraries=("mlflow",),
)


REQUEST, CARD = "registration.json", "MODEL_CARD.md"


def run(config: Config, inputs: Mapping[str, Artifact], out: Path) -> Outcome:
    """Write registration.json and MODEL_CARD.md.

    Raises:
        ArtifactError: the artifacts were not made of one another.
    """
    _require_one_lineage(inputs)
    evaluate, trained = inputs["evaluate"], inputs["finetune"].manifest.config
    scores = json.loads((evaluate.path / "report.json").read_text())["models"]
    shipped = inputs["export"].manifest.proof["format"]
    gate = evaluate.manifest.failure
    accuracy = scores[shipped]["exact_match"]["value"]
    metrics = {
        f"exact_match/{name}": score["exact_match"]["value"] for name, score in scores.items()
    }
    request = {
        "name": config.register_.name,
        "exact_match": accuracy,
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
            "exact_match": repr(accuracy),  # whole: the next version is compared with it
            "format": shipped,
            "gate": "passed" if gate is None else "failed",
            "dataset": inputs["prepare"].manifest.digest,  # scores of one dataset compare
            **{f"digest.{stage}": artifact.manifest.digest for stage, artifact in inputs.items()},
        },
        "artifacts": {stage: _location(artifact) for stage, artifact in inputs.items()},
        "serve": "python -m pipeline stage=serve",
    }
    (out / REQUEST).write_text(json.dumps(request, indent=1, sort_keys=True) + "\n")
    (out / CARD).write_text(_card(config.register_.name, inputs, scores, shipped))
    return Outcome(
        "registration",
        metrics={"exact_match": accuracy, "gate_passed": float(gate is None)},
        proof={"digests": {stage: artifact.manifest.digest for stage, artifact in inputs.items()}},
    )


def _require_one_lineage(inputs: Mapping[str, Artifact]) -> None:
    """A stage run alone leaves those after it as they were: their figures are of other weights."""
    for stage, artifact in inputs.items():
        for source, digest in artifact.manifest.inputs.items():
            if source in inputs and digest != inputs[source].manifest.digest:
                raise ArtifactError(
                    f"{artifact.path} was made of another {source} than {inputs[source].path}: run "
                    f"`python -m pipeline stage={stage}` again with matching settings"
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
    """Markdown, in the order in which a reader asks: what, how good, from what, where."""
    form = FORMATS[shipped].title
    gate, code = inputs["evaluate"].manifest.failure, inputs["merge"].manifest.code
    base = inputs["merge"].manifest.config["model"]["name"]
    data = inputs["prepare"].manifest.config["data"]["folder"]
    trained = inputs["finetune"].manifest.config
    settings = trained["finetune"]
    method = {"lora": "LoRA", "dora": "DoRA", "sft": "full fine-tuning"}[settings["method"]]
    lines = [
        f"# {name}",
        "",
        f"{base} tuned by {method} on {data}, shipped as "
        f"**{form}** (`{shipped}`). Gate: **{'passed' if gate is None else f'failed ({gate})'}**.",
        "",
        "| model | exact match | 95 % interval |",
        "|---|--:|--:|",
    ]
    for model, score in scores.items():
        match = score["exact_match"]
        mark = "**" if model == shipped else ""
        lines.append(
            f"| {mark}{model}{mark} | {mark}{match['value']:.1%}{mark} "
            f"| {match['low']:.1%} to {match['high']:.1%} |"
        )
    lines += [
        "",
        "Measured on held-out questions whose phrasings training never saw.",
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
