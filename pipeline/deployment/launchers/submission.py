"""Where a command runs: here, on several machines by torchrun, on Slurm or on Kubernetes.

    submit(stage, arguments, config)     # shown with launcher.dry_run=true, else handed over

A cluster gets the same command line, with launcher=local where one machine does the work and
launcher=torchrun where several share it (only finetune does); its folders must be shared by all
machines. Imports nothing heavy; NeMo-Run, which writes Slurm's script, is behind adapters.slurm.
"""

import os

from pipeline.config.launcher import KubernetesLauncher, SlurmLauncher
from pipeline.config.schema import Config
from pipeline.core.console import get_console
from pipeline.core.errors import ConfigError
from pipeline.deployment.launchers.job import GRAPH, Work
from pipeline.training.torchrun import MASTER, MASTER_PORT, NODE_RANK, PORT

# Stages that every launcher leaves on this machine.
HERE = ("config", "doctor", "plan", "profiles", "serve")


def is_elsewhere(stage: str, config: Config) -> bool:
    """Whether the command is to be shown or handed over, not run by this process."""
    launcher = config.launcher
    if stage in HERE:
        return False
    return launcher.dry_run or launcher.name in ("slurm", "kubernetes") or _follows(stage, config)


def submit(stage: str, arguments: list[str], config: Config) -> None:
    """Show or hand over a command. arguments: of the command line.

    Raises:
        ConfigError: the launcher cannot run this stage so.
        MissingRuntime: sbatch, kubectl or NeMo-Run is not here.
        PipelineError: the cluster refused it; on a machine that joined another, its ranks failed.
    """
    launcher = config.launcher
    if _follows(stage, config) and not launcher.dry_run:
        from pipeline.training.workers import join

        join(nodes=launcher.nodes, processes=config.finetune.parallel.processes)
        return
    work = work_of(stage, arguments, config)
    if isinstance(launcher, SlurmLauncher):
        from pipeline.deployment.launchers import slurm

        script = slurm.render(work, launcher, config.artifacts)
        if launcher.dry_run:
            print(script, end="")
        else:
            _tell(
                f"job {slurm.submit(work, launcher, config.artifacts)} on {launcher.partition}",
                work,
            )
    elif isinstance(launcher, KubernetesLauncher):
        from pipeline.deployment.launchers import kubernetes

        schedule = config.retrain.schedule if stage == "retrain" else None
        manifest = kubernetes.render(work, launcher, config.artifacts, schedule)
        if launcher.dry_run:
            print(manifest, end="")
        else:
            _tell(kubernetes.submit(manifest), work)
    else:
        print(_here(work, config), end="")


def work_of(stage: str, arguments: list[str], config: Config) -> Work:
    """The job: the command line without its launcher, on the machines that the stage can use."""
    launcher, parallel = config.launcher, config.finetune.parallel
    if "--params" in arguments:
        raise ConfigError(
            f"launcher={launcher.name} hands a stage over and DVC waits for what it makes: give "
            f"python -m pipeline stage=all launcher={launcher.name} … instead of dvc"
        )
    nodes = launcher.nodes if stage == "finetune" else 1
    if stage in GRAPH and launcher.nodes > 1:
        raise ConfigError(
            f"stage={stage} runs on one machine, and launcher.nodes={launcher.nodes}: submit each "
            "stage by itself, of which finetune takes several"
        )
    if parallel.processes % nodes:
        raise ConfigError(
            f"finetune.parallel.processes={parallel.processes} must be a multiple of "
            f"launcher.nodes={nodes}: each machine has as many"
        )
    gpus = _gpus(stage, config, nodes)
    kept = [a for a in arguments if not a.startswith(("launcher=", "launcher."))]
    where = "torchrun" if nodes > 1 else "local"
    command = ["python", "-m", "pipeline", *kept, f"launcher={where}", f"launcher.nodes={nodes}"]
    return Work(f"{config.model.name}-{stage}", stage, tuple(command), nodes, gpus)


def _gpus(stage: str, config: Config, nodes: int) -> int:
    """GPUs that a stage uses on each of its machines."""
    training = config.finetune.parallel.processes // nodes
    engine = config.export.tensor_parallel * config.export.pipeline_parallel
    several = {"finetune": training, "build": engine, "benchmark": engine}
    return max(several.values()) if stage in GRAPH else several.get(stage, 1)


def _follows(stage: str, config: Config) -> bool:
    """Whether this machine is one of several and another leads them."""
    launcher = config.launcher
    several = launcher.name == "torchrun" and launcher.nodes > 1 and stage == "finetune"
    return several and int(os.environ.get(NODE_RANK, 0)) > 0


def _here(work: Work, config: Config) -> str:
    """What local and torchrun would run."""
    parallel = config.finetune.parallel
    sizes = f"tensor {parallel.tensor}, pipeline {parallel.pipeline}, context {parallel.context}"
    processes = parallel.processes // work.nodes if work.stage in ("finetune", *GRAPH) else 1
    each = "one process" if processes == 1 else f"{processes} processes"
    lines = [f"# {each} on each machine; of all: {sizes}, data the rest"]
    if work.nodes == 1:
        return "\n".join([*lines, work.shell(), ""])
    for rank in range(work.nodes):
        at = "$(hostname)" if rank == 0 else "<the first machine>"
        variables = f"{NODE_RANK}={rank} {MASTER}={at} {MASTER_PORT}={PORT}"
        lines.append(f"{variables} {work.shell()}")
    return "\n".join([*lines, ""])


def _tell(what: str, work: Work) -> None:
    machines = f" on {work.nodes} machines" if work.nodes > 1 else ""
    get_console().print(
        f"[green]✓[/] submitted {work.name}: {what}{machines}, {work.gpus} GPUs each",
        soft_wrap=True,
    )
