"""The results of a pipeline run: artifacts/summary.json.

Reads only manifests and reports; imports nothing heavy. `summary_view` prints it.
"""

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.config.schema import Config
from pipeline.core.artifact import Artifact, open_artifact
from pipeline.core.console import get_console
from pipeline.core.errors import ArtifactError
from pipeline.core.paths import MANIFEST
from pipeline.orchestration.graph import declared_stages

SUMMARY = "summary.json"


def write_summary(artifacts: Path, config: Config, *, since: float | None = None) -> dict[str, Any]:
    """Collect the stages' manifests into `artifacts`/summary.json, and return its content.

    since: seconds since 1970; stages whose artifact is older count as reused.
    """
    found = dict(_artifacts(artifacts))
    stages = {name: _stage(artifact, since) for name, artifact in found.items()}
    run = [stage for stage in stages.values() if not stage["reused"]]
    summary = {
        "schema": 1,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": config.model.name,
        "method": config.finetune.method,
        "objective": config.finetune.objective,
        "format": config.quantize.format,
        "stages": stages,
        "training": _training(found.get("finetune")),
        "totals": {
            "seconds": round(sum(stage["seconds"] for stage in stages.values()), 3),
            "seconds_of_this_run": round(sum(stage["seconds"] for stage in run), 3),
            "peak_memory_bytes": max((s["peak_memory_bytes"] for s in stages.values()), default=0),
            "bytes": sum(stage["bytes"] for stage in stages.values()),
        },
        "metric": _read(found.get("evaluate"), "report.json").get("metric"),
        "accuracy": _read(found.get("evaluate"), "report.json").get("models", {}),
        "served": _read(found.get("benchmark"), "report.json").get("served"),
        "gate": _gate(found),
        "overruled": {
            name: dict(artifact.manifest.proof["overruled"])
            for name, artifact in found.items()
            if "overruled" in artifact.manifest.proof
        },
        "engine": _read(found.get("build"), "engine.json"),
        "serve": {"host": config.serve.host, "port": config.serve.port},
        "tracking": _tracking_uri(artifacts, config),
    }
    temporary = artifacts / f".{SUMMARY}.tmp"
    temporary.write_text(json.dumps(summary, indent=1) + "\n")
    temporary.replace(artifacts / SUMMARY)
    return summary


def _artifacts(artifacts: Path) -> Iterator[tuple[str, Artifact]]:
    """The whole artifacts of the graph, in its order."""
    for stage in declared_stages():
        if (artifacts / stage / MANIFEST).is_file():
            try:
                yield stage, open_artifact(artifacts / stage)
            except ArtifactError as error:
                get_console().print(f"[yellow]left out of the summary:[/] {error}", soft_wrap=True)


def _stage(artifact: Artifact, since: float | None) -> dict[str, Any]:
    manifest = artifact.manifest
    made = datetime.fromisoformat(manifest.created).timestamp()
    return {
        "kind": manifest.kind,
        "seconds": manifest.seconds,
        "peak_memory_bytes": manifest.peak_memory_bytes,
        "bytes": manifest.bytes,
        "metrics": dict(manifest.metrics),
        "failure": manifest.failure,
        "digest": manifest.digest,
        "artifact": str(artifact.path),
        "manifest": str(artifact.path / MANIFEST),
        "reused": since is not None and made < int(since),
    }


def _training(artifact: Artifact | None) -> dict[str, Any] | None:
    """Steps and epochs in words, and which step's weights were kept and why."""
    proof = artifact.manifest.proof if artifact else {}
    return {name: proof[name] for name in ("length", "kept")} if "length" in proof else None


def _gate(found: Mapping[str, Artifact]) -> dict[str, Any] | None:
    """What the gates decided about the models, and about the served engine."""
    decided = [
        found[stage].manifest.failure for stage in ("evaluate", "benchmark") if stage in found
    ]
    reasons = "; ".join(filter(None, decided)) or None
    return {"passed": reasons is None, "reason": reasons} if decided else None


def _tracking_uri(artifacts: Path, config: Config) -> str | None:
    from pipeline.core.secrets import mask
    from pipeline.tracking.outbox import Destination, embedded_store

    if not config.tracking.enabled:
        return None
    place = Destination.of(artifacts, config.tracking)
    embedded = place.artifact_root is not None  # then the path as the user knows it
    return f"sqlite:///{embedded_store(artifacts)}" if embedded else mask(place.uri)


def _read(artifact: Artifact | None, name: str) -> dict[str, Any]:
    if artifact is None or name not in artifact.manifest.files:
        return {}
    return json.loads((artifact.path / name).read_text())
