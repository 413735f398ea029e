"""Settings of the launchers: where a command runs (conf/launcher)."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.section import Positive, Section


class LauncherConfig(Section):
    """Where a command runs. `nodes`: machines that share the training, each with as many GPUs."""

    nodes: Positive
    dry_run: bool = Field(description="show what would be submitted, and submit nothing")


class LocalLauncher(LauncherConfig):
    """This machine, now; `torchrun`: one of several that were started alike."""

    name: Literal["local", "torchrun"]


class SlurmLauncher(LauncherConfig):
    """A Slurm cluster with the Pyxis plugin, from a login node. `time` as sbatch takes it."""

    name: Literal["slurm"]
    account: str
    partition: str
    time: str
    container_image: str
    container_mounts: tuple[str, ...]
    job_folder: Path


class KubernetesLauncher(LauncherConfig):
    """A Kubernetes cluster with NVIDIA's device plugin, through kubectl."""

    name: Literal["kubernetes"]
    namespace: str
    container_image: str
    claim: str = Field(description="persistent volume claim that every node mounts")
    mount: str = Field(description="where in the container")
    shared_memory: str


Launcher = Annotated[
    LocalLauncher | SlurmLauncher | KubernetesLauncher, Field(discriminator="name")
]
