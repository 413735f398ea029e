"""Finds a version in MLflow's registry, for a process that does not import MLflow.

    python -m pipeline.tracking.mlflow_versions NAME VERSION [BASE]    # in MLFLOW_TRACKING_URI

VERSION is a number, an alias, or * for all. BASE is the folder that paths in an embedded store are
relative to. Prints one line of JSON: `version`, `aliases`, `tags` and `scores` by question (null if
it was registered without them); of all versions, a list `versions` without scores. If there is no
such version, it has `missing`, a message with the existing versions.
"""

import json
import os
import sys
from typing import TYPE_CHECKING, Any

from pipeline.tracking.mlflow_store import upgrade_store
from pipeline.tracking.registry_reader import ALL, missing
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


def find_all(client: "MlflowClient", name: str) -> dict[str, Any]:
    """Every version, without scores."""
    found = client.search_model_versions(f"name = '{name}'")
    aliases = client.get_registered_model(name).aliases if found else {}
    return {
        "versions": [
            {
                "version": int(version.version),
                "aliases": sorted(
                    a for a, number in aliases.items() if int(number) == int(version.version)
                ),
                "tags": dict(version.tags),
            }
            for version in found
        ]
    }


def _missing(client: "MlflowClient", name: str, wanted: str) -> str:
    numbers = [int(found.version) for found in client.search_model_versions(f"name = '{name}'")]
    aliases = client.get_registered_model(name).aliases if numbers else {}
    return missing(name, wanted, numbers, aliases)


def main(name: str, wanted: str, base: str = ".") -> int:
    set_up()
    try:
        from mlflow import MlflowClient

        os.chdir(base)
        upgrade_store(os.environ.get("MLFLOW_TRACKING_URI", ""))
        client = MlflowClient()
        found = find_all(client, name) if wanted == ALL else find(client, name, wanted)
        print(json.dumps(found))
    except Exception as error:  # anything that a store, a network or a proxy can raise
        print(reason(error), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
