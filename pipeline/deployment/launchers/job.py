"""The job that a launcher submits: a command line, and the machines that it needs."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.core.errors import ConfigError

# Stages that run the whole graph.
GRAPH_STAGES = ("all", "retrain")


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


def check_artifacts(job: JobSpec, artifacts: Path, shared: Sequence[Path], where: str) -> None:
    """Refuse a place for artifacts that ends with the container.

    Args:
        shared: folders in the container that outlive it.
        where: a description of these folders, for messages.

    Raises:
        ConfigError: artifacts are in none of the folders or, for a stage that runs the whole graph,
            not in a checkout there.
    """
    if not any(artifacts.is_relative_to(folder) for folder in shared):
        example = shared[0] / "artifacts" if shared else "/shared/artifacts"
        raise ConfigError(
            f"artifacts={artifacts} would be lost with the container: give artifacts={example}, on "
            f"{where}"
        )
    if job.stage in GRAPH_STAGES and artifacts.name != "artifacts":
        raise ConfigError(
            f"artifacts={artifacts}: stage={job.stage} runs in a checkout on {where}: give its "
            f"folder `artifacts`, such as artifacts={shared[0]}/pipeline/artifacts"
        )
