"""The batch script that NeMo-Run writes, and what reaches sbatch, for which a program stands in."""

import gc
import logging
import shlex
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.core.errors import ConfigError, MissingRuntime, PipelineError
from pipeline.deployment.launchers import submission as launchers
from tests.unit.deployment.launchers.cases import (
    EXPECTED,
    SLURM,
    TRAINING,
    configured,
    write_program,
)

# Pipes that NeMo-Run leaves open.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")


@pytest.fixture(autouse=True)
def _tidy() -> Iterator[None]:
    """NeMo-Run sets up the root logger, and leaves pipes open of which Python warns later."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    yield
    with warnings.catch_warnings(action="ignore"):
        gc.collect()  # its experiment's end, which takes a handler away, too
    root.setLevel(level)
    root.handlers = handlers


def test_the_script_shown_is_the_expected_one(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*TRAINING, *SLURM, "launcher.job_folder=/shared/jobs", "launcher.dry_run=true"]
    launchers.submit("finetune", arguments, configured(arguments))
    assert capsys.readouterr().out == (EXPECTED / "slurm.sh").read_text()


def test_sbatch_gets_the_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NEMORUN_HOME", str(tmp_path / "home"))
    arguments = [*TRAINING, *SLURM, f"launcher.job_folder={tmp_path / 'jobs'}"]
    config = configured(arguments)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))  # a machine may have the real sbatch
    with pytest.raises(MissingRuntime, match="run it on the cluster's login node"):
        launchers.submit("finetune", arguments, config)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    got = tmp_path / "got"
    write_program(tmp_path / "bin", "sbatch", f'echo "$@" > {got}; echo 4242')
    launchers.submit("finetune", arguments, config)
    *options, script = got.read_text().split()
    assert options == ["--requeue", "--parsable"]
    batch = Path(script)
    assert batch.is_relative_to(tmp_path / "jobs")
    assert "#SBATCH --nodes=8" in batch.read_text()
    (task,) = batch.parent.glob("run/scripts/run.sh")
    assert task.read_text() in (EXPECTED / "slurm.sh").read_text()
    assert "job 4242 on batch on 8 machines, 8 GPUs each" in capsys.readouterr().err
    write_program(tmp_path / "bin", "sbatch", "echo sbatch: error: Invalid account >&2; exit 1")
    with pytest.raises(PipelineError, match=r"sbatch refused the job: .*Invalid account"):
        launchers.submit("finetune", arguments, config)


@pytest.mark.parametrize(
    ("stage", "given", "said"),
    [
        ("import", [], r"artifacts would be lost .* give artifacts=/shared/artifacts, on a folder"),
        ("import", ["artifacts=/other/artifacts"], "would be lost with the container"),
        ("all", ["artifacts=/shared/made"], "give its folder `artifacts`"),
        (
            "import",
            ["artifacts=/shared/a", "model=local", "model.name=m", "model.path=/home/m"],
            r"^model.path=/home/m: the container does not have it: put it on a folder of launcher",
        ),
    ],
)
def test_artifacts_outlive_the_container(stage: str, given: list[str], said: str) -> None:
    arguments = [f"stage={stage}", *SLURM, *given, "launcher.job_folder=/jobs"]
    with pytest.raises(ConfigError, match=said):
        launchers.submit(stage, arguments, configured(arguments))


def test_without_a_container_this_checkout_and_environment_run(
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = [
        "stage=import", "launcher=slurm", "launcher.account=null", "launcher.partition=cpu",
        "launcher.container_image=null", "launcher.job_folder=/jobs", "launcher.gpus=0",
        "launcher.options=[qos=high,exclusive]", "launcher.dry_run=true",
    ]  # fmt: skip
    launchers.submit("import", arguments, configured(arguments))
    said = capsys.readouterr().out
    for absent in ("--container", "--account", "gpus-per-node", "/nemo_run"):
        assert absent not in said
    assert "#SBATCH --qos=high\n" in said
    assert "#SBATCH --exclusive\n" in said
    assert f"\ncd {shlex.quote(str(Path.cwd()))}\n" in said
    assert f"\n{shlex.quote(sys.executable)} -m pipeline stage=import" in said
    launchers.submit("import", [*arguments, "launcher.setup=[module load cuda]"],
                     configured([*arguments, "launcher.setup=[module load cuda]"]))  # fmt: skip
    said = capsys.readouterr().out
    assert said.index("\nmodule load cuda\n") < said.index("\nsrun ")
    assert "\npython -m pipeline stage=import" in said


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("launcher.options=[nodes=3]", "the launcher sets it itself"),
        ("launcher.options=[--qos]", "an option of sbatch without its dashes"),
        ("launcher.container_image=null", r"container_mounts has no effect without"),
    ],
)
def test_wrong_settings_are_refused(word: str, said: str) -> None:
    arguments = ["stage=import", *SLURM, "artifacts=/shared/a", "launcher.job_folder=/jobs", word]
    with pytest.raises(ConfigError, match=said):
        launchers.submit("import", arguments, configured(arguments))


def test_the_whole_graph_runs_in_its_checkout(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["stage=all", *SLURM, "artifacts=/shared/my harbor/artifacts"]
    arguments += ["launcher.job_folder=/jobs", "launcher.dry_run=true"]
    launchers.submit("all", arguments, configured(arguments))
    assert "\ncd '/shared/my harbor'\n" in capsys.readouterr().out
