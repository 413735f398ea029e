"""Creates the model version that the register stage requested in MLflow. Safe to repeat."""

import json
import platform
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelStatus, Metric
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types.schema import Array, ColSpec, Object, Property, Schema

from pipeline.tracking import champion_rule
from pipeline.tracking.champion_changes import CHAMPION, OfClient, move_champion
from pipeline.tracking.mlflow_scores import EARLIER, SCORES, by_metric, scores_of

CANDIDATE = "candidate"
REQUEST, CARD = "registration.json", "MODEL_CARD.md"
# Of a registration that an earlier version of the pipeline left waiting in the outbox.
EARLIER_METRIC = {
    "name": "exact_match", "title": "exact match", "format": ".1%", "higher_is_better": True,
}  # fmt: skip
LOADER = "pipeline.deployment.pyfunc"  # with which MLflow opens a version
_MESSAGE = Object([Property("role", "string"), Property("content", "string")])
# The request and response of /v1/chat/completions.
SIGNATURE = ModelSignature(
    inputs=Schema(
        [
            ColSpec(Array(_MESSAGE), "messages"),
            ColSpec("double", "temperature", required=False),
            ColSpec("long", "max_tokens", required=False),
        ]
    ),
    outputs=Schema(
        [
            ColSpec(
                Array(Object([Property("message", _MESSAGE), Property("finish_reason", "string")])),
                "choices",
            )
        ]
    ),
)


def register(client: MlflowClient, run_id: str, files: Path) -> dict[str, Any]:
    """Create a version of the requested model, and set its aliases.

    Args:
        files: folder with registration.json and MODEL_CARD.md (pipeline/stages/register.py).

    Returns:
        name, version, aliases, and the reason why the version is champion or not.
    """
    request = json.loads((files / REQUEST).read_text())
    card = (files / CARD).read_text()
    name = request["name"]
    model = _logged_model(client, run_id, request, files)
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    version = _version(client, run_id, model, request, card)
    client.set_registered_model_alias(name, CANDIDATE, version.version)
    scores = files / SCORES
    ours = by_metric(json.loads(scores.read_text())) if scores.is_file() else {}
    wins, reason = _is_champion(client, version, request, ours)
    if wins:
        move_champion(
            OfClient(client), name, int(version.version), kind="registered", why=reason,
            now=version.creation_timestamp,
        )  # fmt: skip
        client.update_registered_model(name, card)
    client.set_model_version_tag(name, version.version, CHAMPION, reason)
    aliases = [CANDIDATE, CHAMPION] if wins else [CANDIDATE]
    return {"name": name, "version": int(version.version), "aliases": aliases, "reason": reason}


def _logged_model(
    client: MlflowClient, run_id: str, request: Mapping[str, Any], files: Path
) -> LoggedModel:
    """The model that the registry's page shows: signature, card and metrics, without weights."""
    experiment = client.get_run(run_id).info.experiment_id
    found = client.search_logged_models([experiment], f"source_run_id = '{run_id}'")
    model = (
        found[0]
        if found
        else client.create_logged_model(
            experiment, request["name"], run_id, request["tags"], request["params"], "chat"
        )
    )
    with tempfile.TemporaryDirectory() as folder:
        Model(
            artifact_path=model.artifact_location,
            run_id=run_id,
            model_id=model.model_id,
            signature=SIGNATURE,
            flavors={
                "openai_chat": {"artifacts": request["artifacts"], "serve": request["serve"]},
                "python_function": {
                    "loader_module": LOADER,
                    "python_version": platform.python_version(),
                },
            },
            metadata={"description": "the files are where registration.json says"},
        ).save(str(Path(folder) / "MLmodel"))
        for name in (REQUEST, CARD, SCORES):
            if (files / name).is_file():
                (Path(folder) / name).write_bytes((files / name).read_bytes())
        client.log_model_artifacts(model.model_id, folder)
    client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    points = [
        Metric(key, value, model.creation_timestamp, 0, model_id=model.model_id, run_id=run_id)
        for key, value in request["metrics"].items()
    ]
    client.log_batch(run_id, metrics=points)
    return model


def _version(
    client: MlflowClient, run_id: str, model: LoggedModel, request: Mapping[str, Any], card: str
) -> ModelVersion:
    name = request["name"]
    for version in client.search_model_versions(f"name = '{name}'"):
        if version.run_id == run_id:
            return version
    return client.create_model_version(
        name,
        source=model.model_uri,
        run_id=run_id,
        tags=request["tags"],
        description=card,
        model_id=model.model_id,
    )


def _is_champion(
    client: MlflowClient,
    version: ModelVersion,
    request: Mapping[str, Any],
    scores: Mapping[str, Mapping[str, float]],
) -> tuple[bool, str]:
    """Whether the version becomes champion, and why (champion_rule.py).

    scores: of this version, by metric and slice, then by question.
    """
    if not request["gate_passed"]:
        return False, f"it did not pass the gate ({request['gate_reason']})"
    metric = request.get("metric", EARLIER_METRIC)
    shown = f"{float(request[metric['name']]):{metric['format']}} {metric['title']}"
    try:
        holder = client.get_model_version_by_alias(request["name"], CHAMPION)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        return True, f"{shown}, passed the gate, and there was no champion"
    if holder.version == version.version:
        return True, holder.tags.get(CHAMPION, "passed the gate")
    theirs: dict[str, Any] = {}
    decided = [_decide(holder, rule, shown, scores, theirs) for rule in rules_of(request)]
    won = all(met for met, _ in decided)
    # What stands in the way is the reason; else all of it is.
    reasons = [why for met, why in decided if won or not met]
    reason = "; ".join(reasons) or f"{shown}, passed the gate, which compares no champions"
    if not won and request.get("overrule"):
        return True, f"overruled ({request['overrule']}): {reason}"
    return won, reason


def rules_of(request: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The conditions against the champion: key of the scores, metric, margin, by, and comparison.

    A registration of an earlier version has one, in parts.
    """
    if "rules" in request:
        return list(request["rules"])
    return [
        {
            "key": EARLIER,
            "metric": request.get("metric", EARLIER_METRIC),
            "margin": request.get("margin", 0.0),
            "by": "interval",
            "comparison": request.get("comparison") or {},
        }
    ]


def _decide(
    holder: ModelVersion,
    rule: Mapping[str, Any],
    shown: str,
    scores: Mapping[str, Mapping[str, float]],
    theirs: dict[str, Any],
) -> tuple[bool, str]:
    """Whether a version meets one condition, and why.

    shown: its main figure. theirs: filled with the champion's scores when they are needed.
    """
    metric, margin, by = rule["metric"], rule["margin"], rule["by"]
    found = _compared(holder, rule, scores, theirs)
    if found is None:
        return False, (
            f"{shown}; it cannot be compared with version {holder.version}, which has no answers "
            "to the same questions in the registry, and that version stays champion: run "
            "stage=register where its engine is, or give the reason to replace it in "
            "register.overrule"
        )
    higher = metric["higher_is_better"]
    won = champion_rule.wins(found, margin=margin, higher_is_better=higher, by=by)
    said = champion_rule.words(found, metric, champion=holder.version, margin=margin, by=by)
    where = rule["key"].removeprefix(metric["name"]).strip()
    return won, f"{where}: {said}" if where else said


def _compared(
    holder: ModelVersion,
    rule: Mapping[str, Any],
    scores: Mapping[str, Mapping[str, float]],
    theirs: dict[str, Any],
) -> champion_rule.Comparison | None:
    """The comparison that stage=register made with this champion. If another version has become
    champion since, the scores that it was registered with are compared."""
    made = rule["comparison"]
    if made.get("result") and made["champion"] == int(holder.version):
        return champion_rule.Comparison(**made["result"])
    if not theirs:
        theirs["scores"] = scores_of(holder) or {}
    key, higher = rule["key"], rule["metric"]["higher_is_better"]
    return champion_rule.compare(
        scores.get(key, {}), theirs["scores"].get(key, {}), higher_is_better=higher
    )
