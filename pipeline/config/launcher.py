"""Settings of the launchers: where a command runs (conf/launcher)."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.section import Positive, Section


class LauncherConfig(Section):
    """Where a command runs."""

    nodes: Positive = Field(
        description="Machines that share the training, each with the same number of GPUs"
    )
    dry_run: bool = Field(
        description="Whether to show what would be submitted without submitting it"
    )


class LocalLauncher(LauncherConfig):
    """This machine, now; `torchrun`: this machine as one of several."""

    name: Literal["local", "torchrun"] = Field(
        description="Launcher: this machine alone (local), or as one of several (torchrun)"
    )


class SlurmLauncher(LauncherConfig):
    """A Slurm cluster with the Pyxis plugin, from a login node."""

    name: Literal["slurm"] = Field(description="Launcher: a Slurm cluster, from a login node")
    account: str = Field(description="Slurm account")
    partition: str = Field(description="Slurm partition")
    time: str = Field(description="Time limit of the job, as sbatch takes it, such as 04:00:00")
    container_image: str = Field(description="Image of the Dockerfile's train target")
    container_mounts: tuple[str, ...] = Field(
        description="Folders that all nodes share, as /lustre/me:/lustre/me"
    )
    job_folder: Path = Field(description="Folder that all nodes share, for scripts and logs")


class KubernetesLauncher(LauncherConfig):
    """A Kubernetes cluster with NVIDIA's device plugin, through kubectl."""

    name: Literal["kubernetes"] = Field(description="Launcher: a Kubernetes cluster, by kubectl")
    namespace: str = Field(description="Namespace of the job")
    container_image: str = Field(description="Image of the Dockerfile's train target")
    claim: str = Field(description="ReadWriteMany volume claim that every node mounts")
    mount: str = Field(description="Folder in the container where the claim is mounted")
    shared_memory: str = Field(
        description="Size of /dev/shm for NCCL and the data loader, such as 64Gi"
    )


Launcher = Annotated[
    LocalLauncher | SlurmLauncher | KubernetesLauncher, Field(discriminator="name")
]
