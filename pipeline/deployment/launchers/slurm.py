"""Slurm, by NeMo-Run: the batch script that its SlurmExecutor writes, and its submission.

Each node runs the command once, in the container, with torchrun's variables set from Slurm's. The
first node of the list leads. srun ends all tasks when one fails (--kill-on-bad-exit). NeMo-Run also
sets --wait=60, which ends all tasks a minute after the first one ends. A later --wait=0 undoes
that, because the leading node still has to hash and store the result.
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
from pipeline.deployment.launchers.job import GRAPH_STAGES, JobSpec, check_artifacts
from pipeline.training.torchrun import MASTER, MASTER_PORT, NODE_RANK, PORT

PROJECT = "/app"  # in the container of the Dockerfile
TASK = "run"


def render(job: JobSpec, launcher: SlurmLauncher, artifacts: Path) -> str:
    """The batch script, and the script that each of its tasks runs. Leaves no files.

    Raises:
        ConfigError: artifacts are not in a folder that the container shares with the cluster.
    """
    targets = [Path(mount.split(":")[1]) for mount in launcher.container_mounts if ":" in mount]
    check_artifacts(job, artifacts, targets, "a folder of launcher.container_mounts")
    with (
        tempfile.TemporaryDirectory() as base,
        _experiment(job, launcher, artifacts, base, "dry-run") as made,
    ):
        made.dryrun(log=False, delete_exp_dir=False)
        (batch,) = Path(base).rglob(f"{TASK}_sbatch.sh")
        (task,) = Path(base).rglob(f"scripts/{TASK}.sh")
        return f"{batch.read_text()}\n# {TASK}.sh, run by each task\n{task.read_text()}"


def submit(job: JobSpec, launcher: SlurmLauncher, artifacts: Path) -> str:
    """Submit with this machine's sbatch. Returns the job's number.

    Raises:
        MissingRuntime: sbatch is not installed.
        PipelineError: sbatch refused the job.
    """
    if shutil.which("sbatch") is None:
        raise MissingRuntime(
            "launcher=slurm needs sbatch, which is not on the PATH: run it on the cluster's login "
            "node, or print the script with launcher.dry_run=true"
        )
    from invoke.exceptions import UnexpectedExit

    base = str(launcher.job_folder)
    try:
        number = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
        with _experiment(job, launcher, artifacts, base, number) as made:
            made.run(detach=True)
            (submitted,) = made.jobs
    except UnexpectedExit as error:
        output = " ".join(error.result.stderr.split())
        raise PipelineError(f"sbatch refused the job: {output}: correct launcher.…") from error
    # slurm_tunnel://nemo_run/<job>/master/0
    return str(submitted.handle).split("/")[3]


@contextmanager
def _no_input() -> Iterator[None]:
    """Gives no standard input, which NeMo-Run's child processes would otherwise consume."""
    given, sys.stdin = sys.stdin, io.StringIO()
    try:
        yield
    finally:
        sys.stdin = given


@contextmanager
def _experiment(
    job: JobSpec, launcher: SlurmLauncher, artifacts: Path, base: str, number: str
) -> Iterator[Any]:
    """NeMo-Run's experiment with one task, in `base`, with its paths in launcher.job_folder."""
    with warnings.catch_warnings(action="ignore"):
        import nemo_run

    executor = nemo_run.SlurmExecutor(
        account=launcher.account,
        partition=launcher.partition,
        time=launcher.time,
        nodes=job.nodes,
        ntasks_per_node=1,  # it starts one process per GPU itself
        gpus_per_node=job.gpus,
        container_image=launcher.container_image,
        container_mounts=list(launcher.container_mounts),
        srun_args=["--wait=0"],
        job_name_prefix=f"{job.name}.",
        env_vars={MASTER: "$head_node_ip", MASTER_PORT: str(PORT)},
        tunnel=nemo_run.LocalTunnel(job_dir=str(launcher.job_folder / "experiments")),
        packager=nemo_run.Packager(),  # the container has the code
    )
    project = shlex.quote(str(artifacts.parent)) if job.stage in GRAPH_STAGES else PROJECT
    script = nemo_run.Script(
        inline=f"cd {project}\nexport {NODE_RANK}=$SLURM_NODEID\nexec {job.shell()}\n"
    )
    with (
        _no_input(),
        nemo_run.Experiment(
            job.name,
            executor=executor,
            id=f"{job.name}_{number}",
            base_dir=base,
            log_level="ERROR",
            clean_mode=True,
            enable_goodbye_message=False,
            skip_status_at_exit=True,
        ) as made,
    ):
        made.add(script, name=TASK)
        yield made
