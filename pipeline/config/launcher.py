"""Settings of the launchers: where a command runs (conf/launcher)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from pipeline.config.section import Form, Processes, Section

Word = Annotated[str, Form(r"\S{1,1000}", "one word")]
Label = Annotated[
    str, Form(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?", "a name of a-z, 0-9, - and .")
]  # in Kubernetes


class LauncherConfig(Section):
    """Where a command runs."""

    nodes: Processes = Field(
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
    account: Word = Field(description="Slurm account")
    partition: Word = Field(description="Slurm partition")
    time: Annotated[
        str,
        Form(
            r"\d{1,3}-\d{1,2}(:[0-5]?\d){0,2}|\d{1,6}|\d{1,4}(:[0-5]?\d){1,2}",
            "minutes, hours:minutes:seconds such as 04:00:00, or days-hours",
        ),
    ] = Field(description="Time limit of the job, as sbatch takes it, such as 04:00:00")
    container_image: Word = Field(description="Image of the Dockerfile's train target")
    container_mounts: tuple[str, ...] = Field(
        description="Folders that all nodes share, as /lustre/me:/lustre/me"
    )
    job_folder: Path = Field(description="Folder that all nodes share, for scripts and logs")


class KubernetesLauncher(LauncherConfig):
    """A Kubernetes cluster with NVIDIA's device plugin, through kubectl."""

    name: Literal["kubernetes"] = Field(description="Launcher: a Kubernetes cluster, by kubectl")
    namespace: Label = Field(description="Namespace of the job")
    container_image: Word = Field(description="Image of the Dockerfile's train target")
    claim: Label = Field(description="ReadWriteMany volume claim that every node mounts")
    mount: Annotated[str, Form(r"/[^\s:]+", "a path that begins with /")] = Field(
        description="Folder in the container where the claim is mounted"
    )
    shared_memory: Annotated[str, Form(r"[1-9]\d{0,14}([KMGT]i?)?", "a size such as 64Gi")] = Field(
        description="Size of /dev/shm for NCCL and the data loader, such as 64Gi",
    )


def _kind(given: object) -> object:
    name = given.get("name") if isinstance(given, Mapping) else getattr(given, "name", None)
    return "local" if name == "torchrun" else name


Launcher = Annotated[
    Annotated[LocalLauncher, Tag("local")]
    | Annotated[SlurmLauncher, Tag("slurm")]
    | Annotated[KubernetesLauncher, Tag("kubernetes")],
    Discriminator(_kind),
]
