"""Chooses where a command runs: here, on several machines with torchrun, on Slurm or Kubernetes.

    submit(stage, arguments, config)     # prints the job with launcher.dry_run=true

A cluster gets the same command line, with launcher=local for one machine and launcher=torchrun for
several (only finetune uses several). All machines must share its folders. Imports nothing heavy:
slurm.py imports NeMo-Run, which writes Slurm's script, when it is needed.
"""

import os

from pipeline.config.launcher import KubernetesLauncher, SlurmLauncher
from pipeline.config.schema import Config
from pipeline.core.console import get_console
from pipeline.core.errors import ConfigError
from pipeline.deployment.launchers.job import GRAPH_STAGES, JobSpec
from pipeline.models.architecture import read_shape
from pipeline.planner.refusals import check_run
from pipeline.training.settings_checks import check
from pipeline.training.torchrun import MASTER, MASTER_PORT, NODE_RANK, PORT

# Stages that always run on this machine.
LOCAL_STAGES = (
    "clean", "config", "doctor", "graph", "inspect", "lineage", "plan", "profiles", "serve",
    "synthesize", "verify",
)  # fmt: skip


def is_elsewhere(stage: str, config: Config) -> bool:
    """Whether this process prints or submits the command instead of running it."""
    launcher = config.launcher
    if stage in LOCAL_STAGES:
        return False
    on_cluster = launcher.name in ("slurm", "kubernetes")
    return launcher.dry_run or on_cluster or _joins_leader(stage, config)


def submit(stage: str, arguments: list[str], config: Config) -> None:
    """Print or submit a command.

    Args:
        arguments: of the command line.

    Raises:
        ConfigError: the launcher cannot run this stage with these settings.
        MissingRuntime: sbatch, kubectl or NeMo-Run is not installed.
        PipelineError: the cluster refused the job; or this machine joined another, and its ranks
            failed.
    """
    launcher = config.launcher
    if _joins_leader(stage, config) and not launcher.dry_run:
        from pipeline.training.workers import join

        join(nodes=launcher.nodes, processes=config.finetune.parallel.processes)
        return
    job = job_spec(stage, arguments, config)
    if launcher.name in ("slurm", "kubernetes"):
        _refuse_early(stage, config)
    if isinstance(launcher, SlurmLauncher):
        _submit_to_slurm(job, launcher, config)
    elif isinstance(launcher, KubernetesLauncher):
        from pipeline.deployment.launchers import kubernetes

        schedule = config.retrain.schedule if stage == "retrain" else None
        manifest = kubernetes.render(job, launcher, config, schedule)
        if launcher.dry_run:
            print(manifest, end="")
        else:
            _report(kubernetes.submit(manifest), job)
    else:
        print(_local_commands(job, config), end="")


def _refuse_early(stage: str, config: Config) -> None:
    """Refuse what the job would refuse, if the model is visible here too.

    Raises:
        ConfigError, DataError: what the stage would raise, in its words.
    """
    if not (config.model.path / "config.json").is_file():
        return
    if stage in GRAPH_STAGES:
        check_run(config, here=False)
    elif stage == "finetune":
        check(config.finetune, read_shape(config.model.path), nodes=config.launcher.nodes)


def _submit_to_slurm(job: JobSpec, launcher: SlurmLauncher, config: Config) -> None:
    from pipeline.deployment.launchers import slurm

    if launcher.dry_run:
        print(slurm.render(job, launcher, config), end="")
        return
    from pipeline.deployment.launchers import slurm_queue

    slurm.check(job, launcher, config)
    submitted = slurm.submit([job], launcher, config.artifacts)
    _report(f"job {submitted.number} on {launcher.partition}", job)
    if launcher.wait:
        slurm_queue.require_success(slurm_queue.follow(submitted, job.name), submitted)
    else:
        get_console().print(
            f"state: squeue -j {submitted.number}; log: {submitted.folder}/log-*.out; "
            f"end it: scancel {submitted.number}",
            soft_wrap=True,
        )


def job_spec(stage: str, arguments: list[str], config: Config) -> JobSpec:
    """The job: the command line without its launcher, and the machines that the stage can use."""
    launcher, parallel = config.launcher, config.finetune.parallel
    if "--params" in arguments:
        raise ConfigError(
            f"launcher={launcher.name} submits a stage, but DVC waits for its result: run "
            f"`python -m pipeline stage=all launcher={launcher.name} …` instead of dvc"
        )
    nodes = launcher.nodes if stage == "finetune" else 1
    check_nodes(stage, config)
    if parallel.processes % nodes:
        raise ConfigError(
            f"finetune.parallel.processes={parallel.processes} must be a multiple of "
            f"launcher.nodes={nodes}: all machines run the same number of processes"
        )
    gpus = getattr(launcher, "gpus", None)
    if gpus is None:
        gpus = _gpus(stage, config, nodes)
    kept = [a for a in arguments if not a.startswith(("launcher=", "launcher."))]
    where = "torchrun" if nodes > 1 else "local"
    command = ["python", "-m", "pipeline", *kept, f"launcher={where}", f"launcher.nodes={nodes}"]
    return JobSpec(f"{config.model.name}-{stage}", stage, tuple(command), nodes, gpus)


def check_nodes(stage: str, config: Config) -> None:
    """
    Raises:
        ConfigError: a stage that runs the whole graph is to run on several machines.
    """
    if stage in GRAPH_STAGES and config.launcher.nodes > 1:
        raise ConfigError(
            f"launcher.nodes={config.launcher.nodes}, but stage={stage} runs on one machine: "
            "submit each stage separately; only finetune uses several machines"
        )


def _gpus(stage: str, config: Config, nodes: int) -> int:
    """Number of GPUs that a stage uses on each of its machines."""
    training = config.finetune.parallel.processes // nodes
    engine = config.export.tensor_parallel * config.export.pipeline_parallel
    several = {"finetune": training, "build": engine, "benchmark": engine}
    return max(several.values()) if stage in GRAPH_STAGES else several.get(stage, 1)


def _joins_leader(stage: str, config: Config) -> bool:
    """Whether this is one of several machines, and another one leads them."""
    launcher = config.launcher
    several = launcher.name == "torchrun" and launcher.nodes > 1 and stage == "finetune"
    return several and int(os.environ.get(NODE_RANK, 0)) > 0


def _local_commands(job: JobSpec, config: Config) -> str:
    """The commands that launcher=local and launcher=torchrun run."""
    parallel = config.finetune.parallel
    sizes = f"tensor {parallel.tensor}, pipeline {parallel.pipeline}, context {parallel.context}"
    processes = parallel.processes // job.nodes if job.stage in ("finetune", *GRAPH_STAGES) else 1
    each = "one process" if processes == 1 else f"{processes} processes"
    lines = [f"# {each} on each machine; parallel over all machines: {sizes}, data the rest"]
    if job.nodes == 1:
        return "\n".join([*lines, job.shell(), ""])
    for rank in range(job.nodes):
        at = "$(hostname)" if rank == 0 else "<the first machine>"
        variables = f"{NODE_RANK}={rank} {MASTER}={at} {MASTER_PORT}={PORT}"
        lines.append(f"{variables} {job.shell()}")
    return "\n".join([*lines, ""])


def _report(what: str, job: JobSpec) -> None:
    machines = f" on {job.nodes} machines" if job.nodes > 1 else ""
    gpus = f"{job.gpus} GPUs each" if job.gpus else "no GPUs"
    get_console().print(
        f"[green]✓[/] submitted {job.name}: {what}{machines}, {gpus}",
        soft_wrap=True,
    )
