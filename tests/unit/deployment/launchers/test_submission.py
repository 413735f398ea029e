"""What each launcher prints, submits and refuses."""

import itertools
import os
import re
import secrets
from pathlib import Path

import pytest
import yaml

from pipeline.core.errors import ConfigError, MissingRuntime, PipelineError
from pipeline.deployment.launchers import submission as launchers
from pipeline.training import workers as launch
from tests.unit.deployment.launchers.cases import (
    EXPECTED,
    KUBERNETES,
    TRAINING,
    configured,
    write_program,
)

DRY = "launcher.dry_run=true"


@pytest.fixture
def same_suffix(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the names of jobs."""
    monkeypatch.setattr(secrets, "token_hex", lambda size: "0a1b")


def shown(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    config = configured(arguments)
    assert launchers.is_elsewhere(arguments[0].removeprefix("stage="), config)
    launchers.submit(arguments[0].removeprefix("stage="), arguments, config)
    return capsys.readouterr().out


def test_by_default_a_stage_runs_here() -> None:
    for stage in ("prepare", "finetune", "all", "serve"):
        assert not launchers.is_elsewhere(stage, configured([f"stage={stage}"]))
    # What looks at this machine stays on it.
    for stage in ("config", "doctor", "plan", "profiles", "serve"):
        assert not launchers.is_elsewhere(stage, configured([f"stage={stage}", *KUBERNETES]))


@pytest.mark.usefixtures("same_suffix")
def test_kubernetes_manifest_of_several_machines(capsys: pytest.CaptureFixture[str]) -> None:
    said = shown([*TRAINING, *KUBERNETES, DRY], capsys)
    assert said == (EXPECTED / "kubernetes.yaml").read_text()


def test_kubernetes_manifest_of_one_machine(capsys: pytest.CaptureFixture[str]) -> None:
    said = shown(["stage=import", *TRAINING[1:], *KUBERNETES, DRY], capsys)
    (job,) = yaml.safe_load_all(said)
    assert job["spec"]["completions"] == 1
    assert "successPolicy" not in job["spec"]
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["command"][-2:] == ["launcher=local", "launcher.nodes=1"]
    assert container["resources"] == {"limits": {"nvidia.com/gpu": 1}}
    # The command that the pod runs is whole: it composes again.
    fixed = configured(container["command"][3:])
    assert fixed.launcher.name == "local"
    assert fixed.data.train == ("my chats.jsonl",)


@pytest.mark.parametrize(
    ("stage", "processes", "gpus"),
    [
        ("prepare", 1, 1),
        ("import", 8, 1),
        ("finetune", 8, 8),
        ("build", 8, 4),
        ("benchmark", 1, 4),
        ("all", 8, 8),
        ("all", 1, 4),
    ],
)
def test_a_job_gets_the_gpus_that_its_stage_uses(stage: str, processes: int, gpus: int) -> None:
    arguments = [
        f"stage={stage}",
        f"finetune.parallel.processes={processes}",
        "export.tensor_parallel=2",
        "export.pipeline_parallel=2",
        "artifacts=/shared/artifacts",
        *KUBERNETES,
    ]
    assert launchers.job_spec(stage, arguments, configured(arguments)).gpus == gpus


def test_kubernetes_needs_artifacts_on_the_shared_volume() -> None:
    arguments = ["stage=import", *KUBERNETES, DRY]
    with pytest.raises(ConfigError, match="artifacts=/shared/artifacts"):
        launchers.submit("import", arguments, configured(arguments))


def test_kubernetes_names_are_labels_that_differ(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of every submission too: a Job stays for a week, and its Service for good."""
    numbers = itertools.count()
    monkeypatch.setattr(secrets, "token_hex", lambda size: f"{next(numbers):0{2 * size}x}")
    taken: set[str] = set()
    models = ["qwen2.5-72b-instruct-customer-support-harbor-v2-final", "7b", "_", "a" * 34 + "-b"]
    for model in models:
        for stage in ("import", "finetune", "finetune"):
            arguments = [f"stage={stage}", *TRAINING[1:], f"model.name={model}", *KUBERNETES, DRY]
            *_, job = yaml.safe_load_all(shown(arguments, capsys))
            name = job["metadata"]["name"]
            assert re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", name)
            # Kubernetes adds the pod's number and six characters.
            assert len(f"{name}-7-abcde") <= 63
            assert re.search(rf"[a-z0-9]-{stage}-[0-9a-f]{{4}}$", name)
            taken.add(name)
    assert len(taken) == 3 * len(models)


def test_retraining_on_kubernetes_is_a_cron_job_of_one_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["stage=retrain", *KUBERNETES, "retrain.recordings=/shared/reviewed"]
    arguments += ["retrain.schedule='0 3 * * *'", "artifacts=/shared/harbor/artifacts"]
    job = yaml.safe_load(shown([*arguments, DRY], capsys))
    assert (job["kind"], job["metadata"]["name"]) == ("CronJob", "harbor-support-retrain")
    assert job["spec"]["schedule"] == "0 3 * * *"
    assert job["spec"]["concurrencyPolicy"] == "Forbid"
    (container,) = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    assert container["workingDir"] == "/shared/harbor"  # a checkout, in which DVC runs the graph
    assert "stage=retrain" in container["command"]
    write_program(tmp_path, "kubectl", f"echo $1 > {tmp_path}/verb; echo cronjob.batch/x created")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    launchers.submit("retrain", arguments, configured(arguments))
    assert (tmp_path / "verb").read_text() == "apply\n"  # so that it can be changed
    once = [a for a in arguments if not a.startswith("retrain.schedule")]
    assert yaml.safe_load(shown([*once, DRY], capsys))["kind"] == "Job"


@pytest.mark.parametrize("stage", ["all", "retrain"])
def test_the_graph_on_kubernetes_needs_a_checkout_on_the_volume(stage: str) -> None:
    arguments = [f"stage={stage}", *KUBERNETES, "artifacts=/shared/made", DRY]
    with pytest.raises(ConfigError, match="give its folder `artifacts`"):
        launchers.submit(stage, arguments, configured(arguments))


@pytest.mark.usefixtures("same_suffix")
def test_kubectl_gets_the_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*TRAINING, *KUBERNETES]
    config = configured(arguments)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingRuntime, match="kubectl, which is not on the PATH"):
        launchers.submit("finetune", arguments, config)
    write_program(tmp_path, "kubectl", f"/bin/cat > {tmp_path}/got\necho job.batch/x created")
    launchers.submit("finetune", arguments, config)
    assert (tmp_path / "got").read_text() == (EXPECTED / "kubernetes.yaml").read_text()
    said = capsys.readouterr().err
    assert "job.batch/x created (after it has ended, remove both with `kubectl delete " in said
    assert "service,job llama3-405b-finetune-0a1b -n default`) on 8 machines, 8 GPUs each" in said
    alone = ["stage=import", *TRAINING[1:], *KUBERNETES]  # nothing stays of it
    launchers.submit("import", alone, configured(alone))
    assert "job.batch/x created, 1 GPUs each" in capsys.readouterr().err
    write_program(tmp_path, "kubectl", "echo quota exceeded >&2; exit 1")
    with pytest.raises(PipelineError, match="kubectl refused the job: quota exceeded"):
        launchers.submit("finetune", arguments, config)


def test_torchrun_shows_a_command_for_each_machine(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*TRAINING, "launcher=torchrun", "launcher.nodes=8", DRY]
    lines = shown(arguments, capsys).splitlines()
    assert lines[0].startswith("# 8 processes on each machine; parallel over all machines: ")
    assert "tensor 8, pipeline 2" in lines[0]
    assert len(lines) == 9
    assert lines[8].startswith("PET_NODE_RANK=7 PET_MASTER_ADDR=<the first machine>")
    assert lines[8].endswith("'data.train=[my chats.jsonl]' launcher=torchrun launcher.nodes=8")


def test_local_shows_its_command(capsys: pytest.CaptureFixture[str]) -> None:
    said = shown(["stage=build", "export.tensor_parallel=2", DRY], capsys)
    assert "# one process on each machine" in said
    said = shown(["stage=finetune", "finetune.parallel.processes=2", DRY], capsys)
    assert "# 2 processes on each machine" in said
    assert said.endswith("stage=finetune finetune.parallel.processes=2 launcher=local "
                         "launcher.nodes=1\n")  # fmt: skip


def test_torchrun_knows_the_number_of_machines_from_its_variable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = ["stage=finetune", "launcher=torchrun", "finetune.parallel.processes=2"]
    monkeypatch.setenv("PET_NNODES", "2")
    assert configured(arguments).launcher.nodes == 2
    monkeypatch.setenv("PET_NODE_RANK", "0")
    assert not launchers.is_elsewhere("finetune", configured(arguments))
    monkeypatch.setenv("PET_NODE_RANK", "1")  # it joins the first instead of running the stage
    assert launchers.is_elsewhere("finetune", configured(arguments))
    assert not launchers.is_elsewhere("prepare", configured(arguments))


def test_a_machine_that_follows_joins_with_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    joined: list[dict[str, int]] = []
    monkeypatch.setattr(launch, "join", lambda **sizes: joined.append(sizes))
    monkeypatch.setenv("PET_NODE_RANK", "3")
    arguments = [*TRAINING, "launcher=torchrun", "launcher.nodes=8"]
    launchers.submit("finetune", arguments, configured(arguments))
    assert joined == [{"nodes": 8, "processes": 64}]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["stage=all", *TRAINING[1:], *KUBERNETES], "submit each stage separately"),
        ([*TRAINING, *KUBERNETES, "launcher.nodes=5"], "processes=64 must be a multiple of"),
    ],
)
def test_jobs_that_no_launcher_runs_are_refused(arguments: list[str], said: str) -> None:
    stage = arguments[0].removeprefix("stage=")
    with pytest.raises(ConfigError, match=said):
        launchers.submit(stage, arguments, configured(arguments))


@pytest.mark.parametrize("stage", ["finetune", "all"])
def test_what_a_job_would_refuse_is_not_submitted(stage: str) -> None:
    """Its model is here too."""
    arguments = [f"stage={stage}", *KUBERNETES, "artifacts=/shared/artifacts"]
    arguments += ["finetune.micro_batch_size=5"]
    with pytest.raises(ConfigError, match="must be a multiple of micro_batch_size"):
        launchers.submit(stage, arguments, configured(arguments))


def test_under_dvc_the_whole_graph_must_be_submitted(tmp_path: Path) -> None:
    arguments = ["stage=prepare", *KUBERNETES]
    config = configured(arguments)
    with pytest.raises(ConfigError, match="stage=all launcher=kubernetes"):
        launchers.submit("prepare", ["--params", "params.yaml", "stage=prepare"], config)


@pytest.mark.parametrize("launcher", ["slurm", "kubernetes"])
def test_a_cluster_must_be_named(launcher: str) -> None:
    with pytest.raises(ConfigError, match=r"launcher\.\w+ is not set: give launcher\."):
        configured(["stage=finetune", f"launcher={launcher}"])


def test_an_unknown_launcher_is_refused() -> None:
    assert "PET_NODE_RANK" not in os.environ
    with pytest.raises(ConfigError, match="did you mean slurm"):
        configured(["stage=finetune", "launcher=slurn"])
