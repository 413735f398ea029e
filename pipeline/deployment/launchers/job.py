"""The job that a launcher submits: a command line, the machines that it needs, its folders."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from pipeline.config.schema import Config
from pipeline.core.errors import ConfigError
from pipeline.core.paths import ROOT
from pipeline.models.sources.address import is_source

# Stages that run the whole graph.
GRAPH_STAGES = ("all", "retrain")
# Sections whose paths a job does not read.
_OTHERS = ("canary", "inspect", "launcher", "serve", "synthesize")


@dataclass(frozen=True)
class JobSpec:
    """What the cluster runs. name: of the job. gpus: per node."""

    name: str
    stage: str
    command: tuple[str, ...]
    nodes: int
    gpus: int

    def shell(self) -> str:
        return shlex.join(self.command)


def check_folders(job: JobSpec, config: Config, shared: Sequence[Path], where: str) -> None:
    """Refuse folders that the container does not have, and artifacts that end with it.

    Args:
        shared: folders in the container that outlive it.
        where: a description of these folders, for messages.

    Raises:
        ConfigError: a path of the settings is in none of the folders and not in the image; or
            artifacts of a stage that runs the whole graph are not in a checkout there.
    """
    artifacts = config.artifacts
    example = shared[0] / "artifacts" if shared else "/shared/artifacts"
    if not _is_in(artifacts, shared):
        raise ConfigError(
            f"artifacts={artifacts} would be lost with the container: give artifacts={example}, on "
            f"{where}"
        )
    if job.stage in GRAPH_STAGES and artifacts.name != "artifacts":
        raise ConfigError(
            f"artifacts={artifacts}: stage={job.stage} runs in a checkout on {where}: give its "
            f"folder `artifacts`, such as artifacts={shared[0]}/pipeline/artifacts"
        )
    outside = [
        f"{name}={path}"
        for name, path in paths(config)
        if not _is_in(path, shared) and not _comes_along(path, job.stage)
    ]
    if outside:
        folders = ", ".join(map(str, shared))
        raise ConfigError(
            f"{', '.join(outside)}: the container does not have it: put it on {where} ({folders})"
        )


def paths(config: Config) -> Iterator[tuple[str, Path]]:
    """The settings that name a folder or a file, and what they name; no addresses of stores."""
    yield from _paths(config, "")


def _paths(node: Any, prefix: str) -> Iterator[tuple[str, Path]]:
    if isinstance(node, Path):
        if not is_source(str(node)):
            yield prefix, node
    elif isinstance(node, BaseModel):
        for name in type(node).model_fields:
            if prefix or name not in _OTHERS:
                yield from _paths(getattr(node, name), f"{prefix}.{name}" if prefix else name)
    elif isinstance(node, Mapping):
        for name, value in node.items():
            yield from _paths(value, f"{prefix}.{name}")


def _is_in(path: Path, folders: Sequence[Path]) -> bool:
    return ".." not in path.parts and any(path.is_relative_to(folder) for folder in folders)


def _comes_along(path: Path, stage: str) -> bool:
    """Whether the place where the job runs has it: a checkout, or the image with the project."""
    inside = not path.is_absolute() and ".." not in path.parts
    return inside and (stage in GRAPH_STAGES or (ROOT / path).exists())
