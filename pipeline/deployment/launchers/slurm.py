"""Slurm through NeMo-Run: the batch script that its SlurmExecutor writes, and its submission.

Each node runs the command once, in the container, with torchrun's variables set from Slurm's: the
first node of the list leads. srun ends all tasks when one fails (--kill-on-bad-exit). NeMo-Run also
has it end the others a minute after the first one ended (--wait=60), which a later --wait=0 takes
back: the leading node has yet to hash and file what was trained.
"""

from __future__ import annotations

import io
import secrets
import shlex
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.config.launcher import SlurmLauncher
from pipeline.core.errors import MissingRuntime, PipelineError
from pipeline.deployment.launchers.job import GRAPH, Work, check_artifacts
from pipeline.training.torchrun import MASTER, MASTER_PORT, NODE_RANK, PORT

PROJECT = "/app"  # in the container of the Dockerfile
TASK = "run"


def render(work: Work, launcher: SlurmLauncher, artifacts: Path) -> str:
    """The batch script, and the script that each of its tasks runs. Writes nothing that stays.

    Raises:
        ConfigError: artifacts are in no folder that the container shares with the cluster.
    """
    targets = [Path(mount.split(":")[1]) for mount in launcher.container_mounts if ":" in mount]
    check_artifacts(work, artifacts, targets, "a folder that launcher.container_mounts names")
    with (
        tempfile.TemporaryDirectory() as base,
        _experiment(work, launcher, artifacts, base, "dry-run") as made,
    ):
        made.dryrun(log=False, delete_exp_dir=False)
        (batch,) = Path(base).rglob(f"{TASK}_sbatch.sh")
        (task,) = Path(base).rglob(f"scripts/{TASK}.sh")
        return f"{batch.read_text()}\n# {TASK}.sh, which each task runs\n{task.read_text()}"


def submit(work: Work, launcher: SlurmLauncher, artifacts: Path) -> str:
    """Submit with the sbatch of this machine, a login node; the job's number.

    Raises:
        MissingRuntime: there is no sbatch. PipelineError: it refused.
    """
    if shutil.which("sbatch") is None:
        raise MissingRuntime(
            "launcher=slurm needs sbatch, which is not on the PATH: run it on the cluster's login "
            "node, or see what it would submit with launcher.dry_run=true"
        )
    from invoke.exceptions import UnexpectedExit

    base = str(launcher.job_folder)
    try:
        number = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
        with _experiment(work, launcher, artifacts, base, number) as made:
            made.run(detach=True)
            (job,) = made.jobs
    except UnexpectedExit as error:
        said = " ".join(error.result.stderr.split())
        raise PipelineError(f"sbatch refused the job: {said}; correct launcher.…") from error
    # slurm_tunnel://nemo_run/<job>/master/0
    return str(job.handle).split("/")[3]


@contextmanager
def _no_input() -> Iterator[None]:
    """NeMo-Run's helper programs would be given, and take, what this process has to read."""
    given, sys.stdin = sys.stdin, io.StringIO()
    try:
        yield
    finally:
        sys.stdin = given


@contextmanager
def _experiment(
    work: Work, launcher: SlurmLauncher, artifacts: Path, base: str, number: str
) -> Iterator[Any]:
    """NeMo-Run's experiment of one task, kept under `base`, its paths under launcher.job_folder."""
    with warnings.catch_warnings(action="ignore"):
        import nemo_run

    executor = nemo_run.SlurmExecutor(
        account=launcher.account,
        partition=launcher.partition,
        time=launcher.time,
        nodes=work.nodes,
        ntasks_per_node=1,  # which starts a process a GPU itself
        gpus_per_node=work.gpus,
        container_image=launcher.container_image,
        container_mounts=list(launcher.container_mounts),
        srun_args=["--wait=0"],
        job_name_prefix=f"{work.name}.",
        env_vars={MASTER: "$head_node_ip", MASTER_PORT: str(PORT)},
        tunnel=nemo_run.LocalTunnel(job_dir=str(launcher.job_folder / "experiments")),
        packager=nemo_run.Packager(),  # the container has the code
    )
    project = shlex.quote(str(artifacts.parent)) if work.stage in GRAPH else PROJECT
    script = nemo_run.Script(
        inline=f"cd {project}\nexport {NODE_RANK}=$SLURM_NODEID\nexec {work.shell()}\n"
    )
    with (
        _no_input(),
        nemo_run.Experiment(
            work.name,
            executor=executor,
            id=f"{work.name}_{number}",
            base_dir=base,
            log_level="ERROR",
            clean_mode=True,
            enable_goodbye_message=False,
            skip_status_at_exit=True,
        ) as made,
    ):
        made.add(script, name=TASK)
        yield made
