"""Finds a version in MLflow's registry, for a process that does not import MLflow.

    python -m pipeline.tracking.mlflow_versions NAME VERSION [BASE]    # in MLFLOW_TRACKING_URI

VERSION is a number or an alias. BASE is the folder that paths in an embedded store are relative to.
Prints one line of JSON: `version`, `aliases`, `tags` and `scores`, by question (null if it was
registered without them). If there is no such version, it has `missing`, a message with the existing
versions.
"""

import json
import os
import sys
from typing import TYPE_CHECKING, Any

from pipeline.tracking.mlflow_store import upgrade_store
from pipeline.tracking.sender_process import reason, set_up

if TYPE_CHECKING:
    from mlflow import MlflowClient

_NOT_THERE = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")


def find(client: "MlflowClient", name: str, wanted: str) -> dict[str, Any]:
    """The version of this number or alias."""
    from mlflow.exceptions import MlflowException

    from pipeline.tracking.mlflow_scores import scores_of

    try:
        by_number = wanted.isdigit()
        get = client.get_model_version if by_number else client.get_model_version_by_alias
        found = get(name, wanted)
    except MlflowException as error:
        if error.error_code not in _NOT_THERE:
            raise
        return {"missing": _missing(client, name, wanted)}
    # The result of a search by alias does not always have the aliases.
    aliases = client.get_model_version(name, found.version).aliases
    return {
        "version": int(found.version),
        "aliases": sorted(aliases),
        "tags": dict(found.tags),
        "scores": scores_of(found),
    }


def _missing(client: "MlflowClient", name: str, wanted: str) -> str:
    versions = client.search_model_versions(f"name = '{name}'")
    if not versions:
        return f"no version of {name} is registered yet: `stage=all` registers one"
    aliases = client.get_registered_model(name).aliases
    there = [str(v) for v in sorted(int(version.version) for version in versions)]
    there += [f"{alias} ({version})" for alias, version in sorted(aliases.items())]
    return f"{name} has no version {wanted}: choose one of {', '.join(there)}"


def main(name: str, wanted: str, base: str = ".") -> int:
    set_up()
    try:
        from mlflow import MlflowClient

        os.chdir(base)
        upgrade_store(os.environ.get("MLFLOW_TRACKING_URI", ""))
        print(json.dumps(find(MlflowClient(), name, wanted)))
    except Exception as error:  # anything that a store, a network or a proxy can raise
        print(reason(error), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
