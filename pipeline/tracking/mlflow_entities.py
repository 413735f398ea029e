"""Events of the outbox as MLflow's entities: names, tags and datasets within MLflow's limits."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from mlflow.entities import Dataset, DatasetInput, InputTag

# MLflow's limits of a parameter's value, a name and a shown digest, in characters.
PARAM_LENGTH, NAME_LENGTH, DIGEST_LENGTH = 6000, 250, 12
T = TypeVar("T")


def dataset_input(name: str, source: Mapping[str, Any], context: str) -> DatasetInput:
    dataset = Dataset(
        name=name,
        digest=source["digest"][:DIGEST_LENGTH],
        source_type="local",
        source=json.dumps({"uri": source["path"]}),
        profile=json.dumps(source["figures"]),
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", context)])


def source_tags(user: str, command: str) -> dict[str, str]:
    kind = {"mlflow.source.name": command, "mlflow.source.type": "LOCAL"}
    return {"mlflow.user": user, **kind}


def commit_tags(end: Mapping[str, Any]) -> dict[str, str]:
    code = end.get("code") or {}
    tags = {"mlflow.source.git.commit": code["commit"]} if "commit" in code else {}
    return tags | ({"code.changed": "true"} if code.get("changed") else {})


def artifact_tags(end: Mapping[str, Any]) -> dict[str, str]:
    tags = {"reused": "true"} if end.get("reused") else {}
    if end.get("path"):
        tags |= {"artifact.kind": end["kind"], "artifact.path": end["path"]}
        tags |= {"artifact.digest": end["digest"], "artifact.mib": f"{end['bytes'] / 2**20:.2f}"}
    return tags


def batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for begin in range(0, len(items), size):
        yield items[begin : begin + size]


def allowed_name(text: str) -> str:
    """The text with only the characters that MLflow allows in names."""
    return re.sub(r"[^\w\-./ :]", "_", text)[:NAME_LENGTH]
