"""Slurm, by NeMo-Run: the batch script that its SlurmExecutor writes, and its submission.

Each node runs the command once, with torchrun's variables set from Slurm's: in the container, or
without one in this environment, which all nodes see. The first node of the list leads. srun ends
all tasks when one fails (--kill-on-bad-exit). NeMo-Run also sets --wait=60, which ends all tasks a
minute after the first one ends. A later --wait=0 undoes that, because the leading node still has to
hash and store the result.

A job whose command crashed, or lost a node, is queued again (launcher.retries), and its training
resumes. One that the pipeline refused, by an exit code of its own, would fail again and is not.
"""

from __future__ import annotations

import io
import re
import secrets
import shlex
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config.launcher import SlurmLauncher
from pipeline.config.schema import Config
from pipeline.core.errors import ConfigError, MissingRuntime, PipelineError
from pipeline.core.paths import ROOT
from pipeline.deployment.launchers.job import GRAPH_STAGES, JobSpec, check_folders
from pipeline.training.torchrun import MASTER, MASTER_PORT, NODE_RANK, PORT

PROJECT = "/app"  # in the container of the Dockerfile
TASK = "run"
# A task leaves this file in the job's folder when the pipeline refused its command: by exit codes 2
# to 9
# (core/errors.py). srun's own exit code may be that of a task which it ended.
_REFUSED = "refused"
# Runs when the batch script ends.
_REQUEUE = (
    'trap \'if [ "${{exitcode:-0}}" -ne 0 ] && [ ! -e {refused} ] '
    '&& [ "${{SLURM_RESTART_COUNT:-0}}" -lt {retries} ]; '
    'then scontrol requeue "$SLURM_JOB_ID"; fi\' EXIT'
)


@dataclass(frozen=True)
class Submitted:
    """A job in Slurm's queue. folder: with the log of each start of it, and of each array task."""

    number: str
    folder: Path

    def logs(self) -> list[Path]:
        """What the command wrote, a file for each start and each task of an array."""
        return sorted(self.folder.glob("log-*.out"))


def render(job: JobSpec, launcher: SlurmLauncher, config: Config) -> str:
    """The batch script, and the script that each of its tasks runs. Leaves no files.

    Raises:
        ConfigError: a folder of the settings is not in one that the container shares with the
            cluster.
    """
    check(job, launcher, config)
    with (
        tempfile.TemporaryDirectory() as base,
        _experiment([job], launcher, config.artifacts, base, "dry-run") as made,
    ):
        made.dryrun(log=False, delete_exp_dir=False)
        (batch,) = Path(base).rglob(f"{TASK}_sbatch.sh")
        (task,) = Path(base).rglob(f"scripts/{TASK}.sh")
        return f"{batch.read_text()}\n# {TASK}.sh, run by each task\n{task.read_text()}"


def check(job: JobSpec, launcher: SlurmLauncher, config: Config) -> None:
    """
    Raises:
        ConfigError: a folder is not one that the job's machines have.
    """
    if launcher.container_image is not None:
        targets = [Path(mount.split(":")[1]) for mount in launcher.container_mounts if ":" in mount]
        check_folders(job, config, targets, "a folder of launcher.container_mounts")
    elif launcher.container_mounts:
        raise ConfigError(
            "launcher.container_mounts has no effect without launcher.container_image: leave it out"
        )
    taken = {
        "account",
        "array",
        "gpus-per-node",
        "job-name",
        "nodes",
        "output",
        "partition",
        "time",
    }
    for option in launcher.options:
        if option.partition("=")[0] in taken:
            raise ConfigError(
                f"launcher.options={option}: the launcher sets it itself, from its other settings"
            )


def submit(jobs: Sequence[JobSpec], launcher: SlurmLauncher, artifacts: Path) -> Submitted:
    """Submit with this machine's sbatch: one job, or several as an array.

    Raises:
        MissingRuntime: sbatch is not installed.
        PipelineError: sbatch refused the job. Nothing of it is left.
    """
    if shutil.which("sbatch") is None:
        raise MissingRuntime(
            "launcher=slurm needs sbatch, which is not on the PATH: run it on the cluster's login "
            "node, or print the script with launcher.dry_run=true"
        )
    from invoke.exceptions import UnexpectedExit

    base = launcher.job_folder
    number = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    try:
        with _experiment(jobs, launcher, artifacts, str(base), number) as made:
            made.run(detach=True)
            (submitted,) = made.jobs
    except UnexpectedExit as error:
        for left in base.glob(f"experiments/*/*_{number}"):
            shutil.rmtree(left, ignore_errors=True)
        output = " ".join(error.result.stderr.split())
        raise PipelineError(f"sbatch refused the job: {output}: correct launcher.…") from error
    except OSError as error:
        raise PipelineError(
            f"launcher.job_folder={base} cannot be written: {error.strerror or error}: give a "
            "folder that all nodes share"
        ) from error
    # slurm_tunnel://nemo_run/<job>/master/0
    (folder,) = base.glob(f"experiments/*/*_{number}/{TASK}")
    return Submitted(str(submitted.handle).split("/")[3], folder)


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
    jobs: Sequence[JobSpec],
    launcher: SlurmLauncher,
    artifacts: Path,
    base: str,
    number: str,
) -> Iterator[Any]:
    """NeMo-Run's experiment with one task, in `base`, with its paths in launcher.job_folder."""
    with warnings.catch_warnings(action="ignore"):
        import nemo_run

    job = jobs[0]
    options: dict[str, Any] = {}
    for option in launcher.options:
        name, equals, value = option.partition("=")
        options[name.replace("-", "_")] = value if equals else True
    lines = list(launcher.setup)
    if launcher.retries:
        folder = launcher.job_folder / "experiments" / job.name / f"{job.name}_{number}" / TASK
        refused = shlex.quote(str(folder / _REFUSED))
        lines.append(_REQUEUE.format(refused=refused, retries=launcher.retries))
    executor = nemo_run.SlurmExecutor(
        account=launcher.account,
        partition=launcher.partition,
        time=launcher.time,
        nodes=job.nodes,
        ntasks_per_node=1,  # it starts one process per GPU itself
        gpus_per_node=job.gpus or None,
        array=f"0-{len(jobs) - 1}" if len(jobs) > 1 else None,
        container_image=launcher.container_image,
        container_mounts=list(launcher.container_mounts),
        srun_args=["--wait=0"],
        job_name_prefix=f"{job.name}.",
        env_vars={MASTER: "$head_node_ip", MASTER_PORT: str(PORT)},
        setup_lines="\n".join(lines) or None,
        additional_parameters=options or None,
        poll_estimated_start_time=False,
        tunnel=nemo_run.LocalTunnel(job_dir=str(launcher.job_folder / "experiments")),
        packager=nemo_run.Packager(),  # the container, or the checkout, has the code
    )
    script = nemo_run.Script(inline=_script(jobs, launcher, artifacts))
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


def _script(jobs: Sequence[JobSpec], launcher: SlurmLauncher, artifacts: Path) -> str:
    """What each task runs: the command, or the one of its number in an array."""
    project = str(artifacts.parent) if jobs[0].stage in GRAPH_STAGES else PROJECT
    if launcher.container_image is None:
        project = str(artifacts.parent if jobs[0].stage in GRAPH_STAGES else Path.cwd())
    lines = [f"cd {shlex.quote(project)}", f"export {NODE_RANK}=$SLURM_NODEID"]
    if launcher.container_image is None:
        # The package that submits is the one that runs, wherever its project is.
        lines.append(f"export PYTHONPATH={shlex.quote(str(ROOT))}${{PYTHONPATH:+:$PYTHONPATH}}")
    if len(jobs) == 1:
        lines.append(_command(jobs[0], launcher))
    else:
        lines.append('case "$SLURM_ARRAY_TASK_ID" in')
        lines += [f"{n}) {_command(job, launcher)} ;;" for n, job in enumerate(jobs)]
        lines.append("esac")
    lines.append("code=$?")
    lines.append(f'[ $code -lt 2 ] || [ $code -gt 9 ] || touch "${{0%/scripts/*}}/{_REFUSED}"')
    return "\n".join([*lines, "exit $code", ""])


def _command(job: JobSpec, launcher: SlurmLauncher) -> str:
    python = "python"
    if launcher.container_image is None and not launcher.setup:
        python = sys.executable
    return re.sub(r"^python\b", lambda _: shlex.quote(python), job.shell())
