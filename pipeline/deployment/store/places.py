"""Which store an address names."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from pipeline.config.register import MLFLOW
from pipeline.config.schema import Config
from pipeline.core.errors import ConfigError
from pipeline.core.secrets import mask
from pipeline.deployment.store.blobs import Store
from pipeline.deployment.store.filesystems import open_filesystem
from pipeline.deployment.store.folder import Folder
from pipeline.deployment.store.mlflow_files import MlflowFiles
from pipeline.deployment.store.oci import Oci
from pipeline.deployment.store.s3 import S3
from pipeline.tracking.client import experiment_of
from pipeline.tracking.mlflow_http import NotThere, Server, is_server
from pipeline.tracking.outbox import Destination

PROXIED = "mlflow-artifacts:/"
SAME = "leave register.store out to serve from this machine alone, or give a folder or a bucket"


def open_store(address: str, config: Config) -> Store:
    """The store that `register.store` names, or that a version was pushed to.

    address: with `mlflow`, the artifact store of the tracking server's experiment, or the folder of
        the embedded store's files.

    Raises:
        ConfigError: there is no such place. MissingRuntime: its library is not installed.
        PipelineError: MLflow's server does not answer.
    """
    if address == MLFLOW:
        return _of_mlflow(config)
    if address.startswith(PROXIED):
        uri = Destination.of(config.artifacts, config.tracking).uri
        if not is_server(uri):
            raise ConfigError(
                f"the version's files are in the artifact store of an MLflow server ({address}), "
                f"and {mask(uri)} is none: set MLFLOW_TRACKING_URI to that server"
            )
        return MlflowFiles(Server(uri), address.removeprefix(PROXIED).strip("/"))
    scheme, between, name = address.partition("://")
    name = name.rstrip("/")
    if not between:
        return Folder(Path(address))
    if scheme == "s3":
        return S3(name)
    if scheme == "oci":
        return Oci(name)
    return open_filesystem(scheme, name)


def _of_mlflow(config: Config) -> Store:
    place = Destination.of(config.artifacts, config.tracking)
    if place.artifact_root:
        return _Embedded(place.artifact_root)
    if not is_server(place.uri):
        raise ConfigError(
            f"register.store=mlflow needs an MLflow server, and {mask(place.uri)} is a database: "
            f"{SAME}"
        )
    location = _location(Server(place.uri), experiment_of(config.tracking))
    parts = urlsplit(location)
    if parts.scheme == "file" or not parts.scheme:
        return Folder(Path(unquote(parts.path)))
    if parts.scheme == "mlflow-artifacts":
        return MlflowFiles(Server(place.uri), parts.path.strip("/"))
    if parts.scheme in ("s3", "gs"):
        return open_store(location, config)
    raise ConfigError(f"MLflow keeps artifacts in {location}, which cannot be used: {SAME}")


class _Embedded(Folder):
    """The files of the store beside the artifacts, which moves with the project."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.address = MLFLOW


def _location(server: Server, experiment: str) -> str:
    """Where MLflow keeps the artifacts of an experiment, which is made if there is none."""
    for _ in range(2):
        try:
            found = server.get("experiments/get-by-name", experiment_name=experiment)
            return str(found["experiment"]["artifact_location"])
        except NotThere:
            server.post("experiments/create", {"name": experiment})
    raise ConfigError(f"MLflow's experiment {experiment} was deleted: restore it, or name another")
