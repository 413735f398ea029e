"""The registry of a tracking store, to be changed: a server over HTTP, else by MLflow's client.

with registry_at(destination) as registry:
    move_champion(registry, "bank", 3, kind="promoted", why="asked for")
"""

from collections.abc import Iterator, Mapping
from contextlib import chdir, contextmanager

from pipeline.tracking.champion_changes import OfClient, Registry
from pipeline.tracking.mlflow_http import Server, is_server
from pipeline.tracking.outbox import Destination


class OfServer:
    """Over HTTP, without importing MLflow."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def aliases(self, name: str) -> Mapping[str, int]:
        model = self._server.get("registered-models/get", name=name)["registered_model"]
        return {each["alias"]: int(each["version"]) for each in model.get("aliases", ())}

    def tags(self, name: str) -> Mapping[str, str]:
        model = self._server.get("registered-models/get", name=name)["registered_model"]
        return {tag["key"]: tag.get("value", "") for tag in model.get("tags", ())}

    def set_tag(self, name: str, key: str, value: str) -> None:
        self._server.post("registered-models/set-tag", {"name": name, "key": key, "value": value})

    def set_alias(self, name: str, alias: str, version: int) -> None:
        body = {"name": name, "alias": alias, "version": str(version)}
        self._server.post("registered-models/alias", body)

    def set_version_tag(self, name: str, version: int, key: str, value: str) -> None:
        body = {"name": name, "version": str(version), "key": key, "value": value}
        self._server.post("model-versions/set-tag", body)


@contextmanager
def registry_at(place: Destination) -> Iterator[Registry]:
    """The registry of a tracking store. An embedded one is used in its own folder."""
    if is_server(place.uri):
        yield OfServer(Server(place.uri))
        return
    from pipeline.tracking.mlflow_store import upgrade_store
    from pipeline.tracking.sender_process import set_up

    set_up()
    from mlflow import MlflowClient

    upgrade_store(place.uri)
    with chdir(place.base if place.artifact_root else "."):
        yield OfClient(MlflowClient(place.uri, place.uri))
