"""Reads MLflow's registry in a process that does not import MLflow, which takes seconds and memory.

    found = read_version("bank", "champion", destination)

A server is asked over HTTP. Of the embedded store, and of a database, a process of its own asks
(mlflow_versions.py).
"""

import json
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.core.errors import ArtifactError, PipelineError
from pipeline.core.paths import ROOT
from pipeline.core.secrets import mask
from pipeline.tracking.mlflow_http import NotThere, Server, is_server
from pipeline.tracking.outbox import Destination, embedded_store

_LOOK_UP = "pipeline.tracking.mlflow_versions"
_LOOK_UP_SECONDS = 120
ALL = "*"  # of mlflow_versions.py: every version
# Tags of a version: the digest of its engine; where its files are, and the digest of their list;
# what the engine needs (engine.json), and its size.
ENGINE, STORE, BUNDLE, RUNTIME, BYTES = "digest.build", "store", "bundle", "engine", "bytes"
TRAINED = "trained"  # what was trained, how and on what
RUNNING = "runs."  # and the address of a server that runs it: seconds since 1970


@dataclass(frozen=True)
class Version:
    """A registered version. aliases: such as champion. tags: as stage=register set them."""

    name: str
    number: int
    aliases: tuple[str, ...]
    tags: Mapping[str, str]

    @property
    def title(self) -> str:
        """As in "version 3 (champion)"."""
        names = f" ({', '.join(self.aliases)})" if self.aliases else ""
        return f"version {self.number}{names}"

    @property
    def engine(self) -> str:
        """Digest of its engine; "" of a version that the pipeline did not register."""
        return self.tags.get(ENGINE, "")


def read_version(name: str, wanted: str | int, place: Destination) -> Version:
    """The version of this number or alias, or the newest with this engine, named by its digest.

    Raises:
        ArtifactError: there is no such version. PipelineError: the registry does not answer.
    """
    if re.fullmatch(r"[0-9a-f]{64}", str(wanted)):
        found = [version for version in read_versions(name, place) if version.engine == wanted]
        if not found:
            raise ArtifactError(
                f"no version of {name} has the engine {wanted}: "
                "`python -m pipeline stage=versions` lists those that are there"
            )
        return found[-1]
    if is_server(place.uri):
        return _of_server(name, str(wanted), Server(place.uri))
    answer = look_up(name, wanted, place)
    if "version" not in answer:
        raise ArtifactError(answer["missing"])
    return Version(name, answer["version"], tuple(answer["aliases"]), answer["tags"])


def read_versions(name: str, place: Destination) -> list[Version]:
    """Every version, by number.

    Raises:
        PipelineError: the registry does not answer.
    """
    if is_server(place.uri):
        found, _ = _search(name, Server(place.uri))
        versions = [_version(name, each) for each in found]
    else:
        answer = look_up(name, ALL, place)
        versions = [
            Version(name, each["version"], tuple(each["aliases"]), each["tags"])
            for each in answer.get("versions", ())
        ]
    return sorted(versions, key=lambda version: version.number)


def number_of(name: str, alias: str, place: Destination) -> int | None:
    """The version that an alias names now; None if there is none. A quick look, for those who look
    often.

    Raises:
        PipelineError: the registry does not answer.
    """
    if is_server(place.uri):
        try:
            found = Server(place.uri).get("registered-models/alias", name=name, alias=alias)
        except NotThere:
            return None
        return int(found["model_version"]["version"])
    if place.artifact_root:
        return alias_in(embedded_store(place.artifacts), name, alias)
    answer = look_up(name, alias, place)
    return answer.get("version")


def alias_in(database: Path, name: str, alias: str) -> int | None:
    """The version that an alias names in an embedded store; None if there is none.

    Raises:
        PipelineError: the store is locked, or of another version of MLflow.
    """
    if not database.is_file():
        return None
    query = "SELECT version FROM registered_model_aliases WHERE name = ? AND alias = ?"
    try:
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as store:
            row = store.execute(query, (name, alias)).fetchone()
    except sqlite3.Error as error:
        raise PipelineError(f"{database} cannot be read ({error}): try again") from error
    return int(row[0]) if row else None


def _of_server(name: str, wanted: str, server: Server) -> Version:
    try:
        if wanted.isdigit():
            found = server.get("model-versions/get", name=name, version=wanted)
        else:
            found = server.get("registered-models/alias", name=name, alias=wanted)
        number = found["model_version"]["version"]
        # The answer by alias does not always have the aliases.
        version = server.get("model-versions/get", name=name, version=number)["model_version"]
    except NotThere:
        raise ArtifactError(_missing(name, wanted, server)) from None
    return _version(name, version)


def _version(name: str, found: Mapping[str, Any]) -> Version:
    tags = {tag["key"]: tag.get("value", "") for tag in found.get("tags", ())}
    return Version(name, int(found["version"]), tuple(sorted(found.get("aliases", ()))), tags)


def _search(name: str, server: Server) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Every version, with its aliases, which MLflow leaves out; the number of each alias."""
    query = {"filter": f"name='{name}'", "max_results": "10000"}
    found = server.get("model-versions/search", **query).get("model_versions", [])
    if not found:
        return [], {}
    model = server.get("registered-models/get", name=name)["registered_model"]
    aliases = {each["alias"]: str(each["version"]) for each in model.get("aliases", ())}
    for each in found:
        each["aliases"] = [a for a, number in aliases.items() if number == str(each["version"])]
    return found, aliases


def _missing(name: str, wanted: str, server: Server) -> str:
    found, aliases = _search(name, server)
    return missing(name, wanted, [int(version["version"]) for version in found], aliases)


def missing(name: str, wanted: str, numbers: list[int], aliases: Mapping[str, str]) -> str:
    """That there is no such version, and which there are."""
    if not numbers:
        return f"no version of {name} is registered yet: `stage=all` registers one"
    there = [str(number) for number in sorted(numbers)]
    there += [f"{alias} ({version})" for alias, version in sorted(aliases.items())]
    return f"{name} has no version {wanted}: choose one of {', '.join(there)}"


def look_up(name: str, version: str | int, place: Destination) -> dict[str, Any]:
    """What mlflow_versions.py prints of a version: with the scores that it was registered with."""
    if place.artifact_root and not embedded_store(place.artifacts).is_file():
        where = f"the registry below {place.artifacts}"
        return {"missing": f"{where} has no version of {name} yet: run `stage=all`"}
    command = [sys.executable, "-m", _LOOK_UP, name, str(version)]
    if place.artifact_root:
        command.append(str(place.base))
    instead = "leave serve.version out to serve the engine in artifacts/build"
    try:
        answer = subprocess.run(
            command, cwd=ROOT, env={**os.environ, "MLFLOW_TRACKING_URI": place.uri},
            capture_output=True, text=True, timeout=_LOOK_UP_SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise PipelineError(
            f"{mask(place.uri)} did not answer within {_LOOK_UP_SECONDS} s: {instead}"
        ) from None
    if answer.returncode:
        why = mask((answer.stderr.strip().splitlines() or ["no reason was given"])[-1])
        raise PipelineError(f"the registry at {mask(place.uri)} does not answer ({why}): {instead}")
    found: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
    return found
