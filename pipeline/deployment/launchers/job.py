"""What a launcher is handed: a command line, and the machines that it takes."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.core.errors import ConfigError

# Stages that run all others.
GRAPH = ("all", "retrain")


@dataclass(frozen=True)
class Work:
    """What a cluster is to run. name: of the job. gpus: of each of the nodes."""

    name: str
    stage: str
    command: tuple[str, ...]
    nodes: int
    gpus: int

    def shell(self) -> str:
        return shlex.join(self.command)


def check_artifacts(work: Work, artifacts: Path, shared: Sequence[Path], where: str) -> None:
    """Refuse artifacts that would end with the container.

    shared: folders in the container that outlive it. where: what they are, for people.

    Raises:
        ConfigError: artifacts are in none of them, or for the whole graph not in a checkout there.
    """
    if not any(artifacts.is_relative_to(folder) for folder in shared):
        example = shared[0] / "artifacts" if shared else "/shared/artifacts"
        raise ConfigError(
            f"artifacts={artifacts} would be lost with the container: give artifacts={example}, on "
            f"{where}"
        )
    if work.stage in GRAPH and artifacts.name != "artifacts":
        raise ConfigError(
            f"artifacts={artifacts} must be the folder `artifacts` of a checkout on {where}, in "
            f"which stage={work.stage} runs: such as {shared[0]}/pipeline/artifacts"
        )
