"""A sweep on Slurm: its runs are the tasks of one job array.

    python -m pipeline.orchestration.sweep STAGE PROJECT FOLDER NUMBER OVERRIDE …

is what task NUMBER runs: the stages of one run, whose settings are in FOLDER. It keeps the result
there, where the command that submitted the array finds it.
"""

from collections.abc import Sequence
from pathlib import Path

from pipeline.config.launcher import SlurmLauncher
from pipeline.config.schema import Config
from pipeline.core.console import get_console
from pipeline.deployment.launchers import slurm, slurm_queue, submission
from pipeline.deployment.launchers.job import JobSpec

_MODULE = "pipeline.orchestration.sweep"


def run_on_slurm(
    stage: str,
    project: Path,
    folder: Path,
    combinations: Sequence[Sequence[str]],
    config: Config,
) -> None:
    """Submit the runs of a sweep, which are prepared, and wait until they have ended.

    folder: of the sweep. combinations: the overrides of each run. config: with the launcher's
    settings, and those of the first run.

    Raises:
        ConfigError: the project is not where the nodes see it.
        MissingRuntime, PipelineError: as slurm.submit.
    """
    launcher = config.launcher
    assert isinstance(launcher, SlurmLauncher)
    artifacts = project / "artifacts"
    given = config.model_copy(update={"artifacts": artifacts})
    gpus = submission.job_spec(stage, [], given).gpus
    name = f"{config.model.name}-sweep"
    place = (stage, str(project), str(folder))
    jobs = [
        # As one that runs the whole graph: it needs a checkout.
        JobSpec(name, "all", ("python", "-m", _MODULE, *place, str(n), *words), 1, gpus)
        for n, words in enumerate(combinations)
    ]
    slurm.check(jobs[0], launcher, given)
    submitted = slurm.submit(jobs, launcher, artifacts)
    get_console().print(
        f"[green]✓[/] submitted {name}: job array {submitted.number} of {len(jobs)} tasks on "
        f"{launcher.partition}; logs: {submitted.folder}",
        soft_wrap=True,
    )
    slurm_queue.follow(submitted, name)
