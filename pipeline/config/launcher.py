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


class ClusterLauncher(LauncherConfig):
    """A cluster that jobs are submitted to."""

    gpus: Annotated[int, Field(ge=0, le=64)] | None = Field(
        description="GPUs of each machine; null: as many as the stage uses; 0 trains on CPUs"
    )


class SlurmLauncher(ClusterLauncher):
    """A Slurm cluster, from a login node; with the Pyxis plugin or without containers."""

    name: Literal["slurm"] = Field(description="Launcher: a Slurm cluster, from a login node")
    account: Word | None = Field(description="Slurm account; null where the cluster has none")
    partition: Word = Field(description="Slurm partition")
    time: Annotated[
        str,
        Form(
            r"\d{1,3}-\d{1,2}(:[0-5]?\d){0,2}|\d{1,6}|\d{1,4}(:[0-5]?\d){1,2}",
            "minutes, hours:minutes:seconds such as 04:00:00, or days-hours",
        ),
    ] = Field(description="Time limit of the job, as sbatch takes it, such as 04:00:00")
    container_image: Word | None = Field(
        description="Image of the Dockerfile's train target, run by Pyxis; null runs this checkout "
        "in this environment, which all nodes must see"
    )
    container_mounts: tuple[str, ...] = Field(
        description="Folders that all nodes share, as /lustre/me:/lustre/me"
    )
    setup: tuple[Annotated[str, Form(r"[^\n]{1,1000}", "one line of shell")], ...] = Field(
        description="Lines of shell before the job, such as `module load cuda` or `source "
        "env/bin/activate`; with them the job runs the `python` that they find"
    )
    options: tuple[
        Annotated[
            str,
            Form(
                r"[a-z][a-z-]{0,40}(=\S{1,200})?",
                "an option of sbatch without its dashes, such as qos=high or exclusive",
            ),
        ],
        ...,
    ] = Field(description="Further options of sbatch, as [qos=high,exclusive,constraint=h200]")
    job_folder: Path = Field(description="Folder that all nodes share, for scripts and logs")
    retries: Annotated[int, Field(ge=0, le=100)] = Field(
        description="How often a job is queued again after a crash or a lost node; training "
        "resumes from its last checkpoint"
    )
    wait: bool = Field(
        description="Whether the command shows the job's states and log until it ends, and has its "
        "exit code; Ctrl-C then cancels the job"
    )


class KubernetesLauncher(ClusterLauncher):
    """A Kubernetes cluster with NVIDIA's device plugin, through kubectl."""

    name: Literal["kubernetes"] = Field(description="Launcher: a Kubernetes cluster, by kubectl")
    kind: Literal["job", "jobset", "trainjob"] = Field(
        description="What is created: a plain Job; a JobSet, which restarts all machines when one "
        "fails; or a TrainJob of Kubeflow's Trainer"
    )
    runtime: Label = Field(description="ClusterTrainingRuntime of a TrainJob")
    retries: Annotated[int, Field(ge=0, le=100)] = Field(
        description="How often a JobSet starts again after a pod failed; training resumes from its "
        "last checkpoint"
    )
    namespace: Label = Field(description="Namespace of the job")
    container_image: Word = Field(description="Image of the Dockerfile's train target")
    claim: Label = Field(description="ReadWriteMany volume claim that every node mounts")
    mount: Annotated[str, Form(r"/[^\s:]+", "a path that begins with /")] = Field(
        description="Folder in the container where the claim is mounted"
    )
    shared_memory: Annotated[str, Form(r"[1-9]\d{0,14}([KMGT]i?)?", "a size such as 64Gi")] = Field(
        description="Size of /dev/shm for NCCL and the data loader, such as 64Gi",
    )
    env: tuple[Annotated[str, Form(r"[A-Za-z_]\w*=[^\n]*", "variables as NAME=value")], ...] = (
        Field(description="Variables of the container, as [NCCL_DEBUG=WARN]")
    )
    secrets: tuple[Label, ...] = Field(
        description="Secrets whose keys become variables, such as AWS_SECRET_ACCESS_KEY"
    )
    pull_secrets: tuple[Label, ...] = Field(description="Secrets with which the image is pulled")
    requests: tuple[
        Annotated[
            str,
            Form(
                r"(cpu|memory|ephemeral-storage)=[1-9]\d{0,14}(m|[KMGT]i?)?",
                "cpu=, memory= or ephemeral-storage= and a quantity, such as memory=256Gi",
            ),
        ],
        ...,
    ] = Field(description="What each pod asks for beside GPUs, as [cpu=32,memory=256Gi]")
    node_selector: tuple[
        Annotated[str, Form(r"[a-z0-9A-Z][\w./-]{0,300}=[\w.-]{0,63}", "labels as key=value")], ...
    ] = Field(description="Labels of the nodes, as [nvidia.com/gpu.product=NVIDIA-H200]")
    tolerations: tuple[Word, ...] = Field(
        description="Keys of taints that pods tolerate, as [nvidia.com/gpu]"
    )
    service_account: Label | None = Field(description="Service account of the pods; null: default")


def _kind(given: object) -> object:
    name = given.get("name") if isinstance(given, Mapping) else getattr(given, "name", None)
    return "local" if name == "torchrun" else name


Launcher = Annotated[
    Annotated[LocalLauncher, Tag("local")]
    | Annotated[SlurmLauncher, Tag("slurm")]
    | Annotated[KubernetesLauncher, Tag("kubernetes")],
    Discriminator(_kind),
]
