"""What pods get beside the command, and the three kinds of jobs that are created."""

from typing import Any

import pytest
import yaml

from pipeline.core.errors import ConfigError
from pipeline.deployment.launchers import kubernetes
from pipeline.deployment.launchers.submission import job_spec
from pipeline.training.torchrun import MASTER, NODE_RANK
from tests.unit.deploy.kubernetes_tools import VERSIONS, needs_tools, problems
from tests.unit.deployment.launchers.cases import KUBERNETES, TRAINING, configured

GIVEN = [
    "launcher.env=[NCCL_DEBUG=WARN,EMPTY=]",
    "launcher.pull_secrets=[images]",
    "launcher.requests=[cpu=32,memory=256Gi]",
    "launcher.node_selector=[nvidia.com/gpu.product=NVIDIA-H200]",
    "launcher.tolerations=[nvidia.com/gpu]",
    "launcher.service_account=trainer",
    "tracking.uri=https://mlflow.example.com",
]


def rendered(*words: str, stage: str = "finetune") -> list[dict[str, Any]]:
    arguments = [f"stage={stage}", *TRAINING[1:], *KUBERNETES, *words]
    config = configured(arguments)
    job = job_spec(stage, arguments, config)
    return list(yaml.safe_load_all(kubernetes.render(job, config.launcher, config)))


def pod_of(objects: list[dict[str, Any]]) -> dict[str, Any]:
    pod: dict[str, Any] = objects[-1]["spec"]["template"]["spec"]
    return pod


def test_pods_get_what_the_settings_give() -> None:
    pod = pod_of(rendered(*GIVEN, "launcher.secrets=[bucket]"))
    (container,) = pod["containers"]
    variables = {v["name"]: v.get("value") for v in container["env"]}
    assert variables["MLFLOW_TRACKING_URI"] == "https://mlflow.example.com"
    assert (variables["NCCL_DEBUG"], variables["EMPTY"]) == ("WARN", "")
    assert container["envFrom"] == [{"secretRef": {"name": "bucket"}}]
    assert container["resources"] == {
        "limits": {"nvidia.com/gpu": 8},
        "requests": {"cpu": "32", "memory": "256Gi"},
    }
    assert pod["imagePullSecrets"] == [{"name": "images"}]
    assert pod["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-H200"}
    assert pod["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists"}]
    assert pod["serviceAccountName"] == "trainer"
    assert pod["securityContext"]["runAsNonRoot"] is True


def test_without_gpus_a_pod_asks_for_none() -> None:
    (container,) = pod_of(rendered("launcher.gpus=0"))["containers"]
    assert container["resources"] == {}


def test_the_environment_names_the_tracking_server(monkeypatch: pytest.MonkeyPatch) -> None:
    def uri(*words: str) -> list[str]:
        (container,) = pod_of(rendered(*words))["containers"]
        return [v["value"] for v in container["env"] if v["name"] == "MLFLOW_TRACKING_URI"]

    assert uri() == []  # a store beside the artifacts, on the volume
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert uri("tracking.uri=https://other.example.com") == ["http://mlflow:5000"]
    assert uri("tracking.enabled=false") == []
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@mlflow.example.com")
    with pytest.raises(ConfigError, match="put it into a Secret") as caught:
        uri()
    assert "secret@" not in str(caught.value)


def test_a_job_set_starts_all_pods_again() -> None:
    (made,) = rendered("launcher.kind=jobset", "launcher.retries=5")
    assert made["spec"]["failurePolicy"] == {"maxRestarts": 5}
    (nodes,) = made["spec"]["replicatedJobs"]
    (container,) = nodes["template"]["spec"]["template"]["spec"]["containers"]
    name = made["metadata"]["name"]
    first = {v["name"]: v.get("value") for v in container["env"]}[MASTER]
    assert first == f"{name}-{nodes['name']}-0-0.{made['spec']['network']['subdomain']}"
    assert len(f"{name}-node-0-7-abcde") <= 63


def test_a_train_job_leaves_the_ranks_to_its_runtime() -> None:
    (made,) = rendered("launcher.kind=trainjob", *GIVEN)
    trainer = made["spec"]["trainer"]
    assert trainer["numNodes"] == 8
    assert trainer["command"][-2:] == ["launcher=torchrun", "launcher.nodes=8"]
    names = {v["name"] for v in trainer["env"]}
    assert {NODE_RANK, MASTER}.isdisjoint(names)
    assert "MLFLOW_TRACKING_URI" in names
    with pytest.raises(ConfigError, match=r"launcher\.secrets has no effect"):
        rendered("launcher.kind=trainjob", "launcher.secrets=[bucket]")


@needs_tools
@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_takes_every_kind(version: str) -> None:
    objects = rendered(*GIVEN, "launcher.secrets=[bucket]")
    objects += rendered("launcher.kind=jobset", *GIVEN)
    objects += rendered("launcher.kind=trainjob", *GIVEN)
    objects += rendered("launcher.kind=trainjob", stage="import")
    assert [o["kind"] for o in objects] == ["Service", "Job", "JobSet", "TrainJob", "TrainJob"]
    assert problems(objects, version) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["model.path=/home/me/llama"], r"^model.path=/home/me/llama: the container does not have"),
        (["data.folder=/data/chats"], r"^data.folder=/data/chats: .*claim=models \(/shared\)"),
        (["data.folder=chats"], r"^data.folder=chats: "),
        (["model.path=/shared/../etc"], r"^model.path=/shared/../etc: "),
        (["model.path=/a", "data.folder=/b"], r"^model.path=/a, data.folder=/b: "),
    ],
)
def test_paths_outside_the_mounts_are_refused(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        rendered(*words)


def test_the_bundled_data_is_in_the_image() -> None:
    assert rendered("data.folder=data/bank", "data.train=[train.jsonl]")


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("launcher.requests=[gpu=1]", "cpu=, memory= or ephemeral-storage="),
        ("launcher.requests=[memory=lots]", "cpu=, memory="),
        ("launcher.node_selector=[fast]", "labels as key=value"),
        ("launcher.env=[1A=b]", "variables as NAME=value"),
        ("launcher.kind=pod", "jobset"),
    ],
)
def test_wrong_settings_are_refused(word: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        rendered(word)
