"""The Helm chart, rendered by helm and validated against three versions of Kubernetes."""

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.config.defaults import default_config
from pipeline.config.outside.canary import CanaryConfig
from pipeline.engines.base import Load
from pipeline.serving.container import nim_variables
from pipeline.serving.metrics import Metrics
from pipeline.training.torchrun import MASTER, MASTER_PORT, NODE_RANK
from tests.unit.deploy.kubernetes_tools import (
    CHART,
    EXAMPLES,
    VERSIONS,
    documents,
    needs_tools,
    of_kind,
    pods,
    problems,
    refusal,
    run,
    template,
)

pytestmark = needs_tools
FILES = sorted(EXAMPLES.glob("*.yaml"))
GIVEN = ("--set", "model.path=support-7,store.claim=models")


@pytest.fixture(scope="module")
def rendered() -> dict[str, list[dict[str, Any]]]:
    """What each example renders, by the example's name."""
    return {file.stem: template("-f", file) for file in FILES}


def server(objects: list[dict[str, Any]]) -> dict[str, Any]:
    """The server's Deployment or StatefulSet."""
    (found,) = [t for t in objects if t["kind"] in ("Deployment", "Rollout", "StatefulSet")
                and t["metadata"]["labels"]["app.kubernetes.io/name"] == "pipeline"]  # fmt: skip
    return found


def container(objects: list[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = server(objects)["spec"]["template"]["spec"]["containers"][0]
    return found


def variables(given: dict[str, Any]) -> dict[str, str]:
    return {v["name"]: v.get("value", "") for v in given["env"]}


@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_takes_every_variant(version: str) -> None:
    objects = [t for f in FILES for t in template("-f", f, "--kube-version", version)]
    assert len(objects) > 60
    assert problems(objects, version) == []


def test_the_schemas_refuse_what_is_wrong(rendered: dict[str, list[dict[str, Any]]]) -> None:
    """Else the test above would say nothing."""
    (deployment,) = of_kind(rendered["cpu"], "Deployment")
    deployment["spec"]["replica"] = 1
    (scaled,) = of_kind(rendered["nim"], "ScaledObject")
    scaled["spec"]["maxReplicaCount"] = "four"
    (route,) = of_kind(rendered["mig"], "HTTPRoute")
    route["spec"]["hostname"] = "a"
    (service,) = of_kind(rendered["kserve"], "InferenceService")
    service["spec"]["predictor"]["model"]["modelFormat"] = {}
    (rollout,) = of_kind(rendered["canary"], "Rollout")
    rollout["spec"]["strategy"]["canary"]["stable"] = "support"
    found = problems([deployment, scaled, route, service, rollout], VERSIONS[0])
    kinds = ["ScaledObject", "HTTPRoute", "InferenceService", "Rollout", "Deployment"]
    assert [f.split()[0] for f in found] == kinds, found


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_helm_lints_without_a_warning(file: Path) -> None:
    done = run("helm", "lint", "--strict", CHART, "-f", file)
    assert not done.returncode, done.stdout
    assert "[WARNING]" not in done.stdout


def test_a_package_renders_the_same(tmp_path: Path) -> None:
    assert not run("helm", "package", CHART, "-d", tmp_path).returncode
    (package,) = tmp_path.glob("pipeline-*.tgz")
    example = ("-f", EXAMPLES / "production.yaml")
    assert template(*example, chart=package) == template(*example)


def test_it_renders_in_two_seconds() -> None:
    start = time.monotonic()
    template("-f", EXAMPLES / "production.yaml")
    assert time.monotonic() - start < 2


def test_every_pod_is_of_the_restricted_profile(rendered: dict[str, list[dict[str, Any]]]) -> None:
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/"""
    count = 0
    for name, objects in rendered.items():
        for pod in pods(objects):
            count += 1
            security = pod["securityContext"]
            assert security["runAsNonRoot"] is True, name
            assert security["seccompProfile"]["type"] == "RuntimeDefault", name
            assert not pod.keys() & {"hostNetwork", "hostPID", "hostIPC"}, name
            # stage=canary changes the weights of a route.
            if pod["containers"][0]["name"] != "canary":
                assert pod["automountServiceAccountToken"] is False, name
            for one in pod["containers"] + pod.get("initContainers", []):
                assert one["securityContext"]["allowPrivilegeEscalation"] is False, name
                assert one["securityContext"]["capabilities"] == {"drop": ["ALL"]}, name
            for volume in pod["volumes"]:
                assert volume.keys() & {"emptyDir", "persistentVolumeClaim"}, name
    assert count > len(rendered)


def test_our_server_knows_its_variables(rendered: dict[str, list[dict[str, Any]]]) -> None:
    for name in ("cpu", "production", "mig", "statefulset"):
        names = set(variables(container(rendered[name])))
        assert names <= set(nim_variables.VARIABLES), name


def test_a_rollout_loses_no_request(rendered: dict[str, list[dict[str, Any]]]) -> None:
    deployment = server(rendered["cpu"])
    spec = deployment["spec"]
    assert spec["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    pod = spec["template"]["spec"]
    notice = container(rendered["cpu"])["lifecycle"]["preStop"]["sleep"]["seconds"]
    serve = yaml.safe_load((CHART.parents[2] / "conf/config.yaml").read_text())["serve"]
    assert pod["terminationGracePeriodSeconds"] - notice > serve["request_timeout"]
    ready = container(rendered["cpu"])["readinessProbe"]
    assert (ready["httpGet"]["path"], ready["failureThreshold"]) == ("/v1/health/ready", 2)


def test_a_replica_gets_gpus_or_slices(rendered: dict[str, list[dict[str, Any]]]) -> None:
    assert container(rendered["production"])["resources"]["limits"]["nvidia.com/gpu"] == 2
    assert container(rendered["production"])["resources"]["limits"]["memory"] == "64Gi"
    assert container(rendered["mig"])["resources"]["limits"] == {"nvidia.com/mig-1g.18gb": 1}
    assert "limits" not in container(template(*GIVEN)).get("resources", {})
    pod = server(rendered["production"])["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-H200"}
    assert pod["runtimeClassName"] == "nvidia"
    assert pod["imagePullSecrets"] == [{"name": "images"}]


def test_the_init_container_pulls_into_the_folder_that_is_served(
    rendered: dict[str, list[dict[str, Any]]],
) -> None:
    pod = server(rendered["production"])["spec"]["template"]["spec"]
    (pull,) = pod["initContainers"]
    digest = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
    assert pull["args"] == [
        "stage=pull",
        "register.name=harbor-support",
        f"register.version={digest}",
        "register.store=s3://models/registry",
        f"pull.to=/models/sha256-{digest}",
    ]
    assert variables(pull)["MLFLOW_TRACKING_URI"] == "http://support-mlflow.models.svc:5000"
    assert {"secretRef": {"name": "support-secrets"}} in pull["envFrom"]
    mount = container(rendered["production"])["volumeMounts"][0]
    assert mount["subPath"] == f"sha256-{digest}"
    assert mount["readOnly"] is True


@pytest.mark.parametrize("name", ["production", "nim", "triton", "mig", "vllm"])
def test_an_autoscaler_sets_the_replicas_alone(
    name: str, rendered: dict[str, list[dict[str, Any]]]
) -> None:
    target = server(rendered[name])
    assert "replicas" not in target["spec"]
    scalers = of_kind(rendered[name], "ScaledObject")
    scalers += of_kind(rendered[name], "HorizontalPodAutoscaler")
    assert scalers[0]["spec"]["scaleTargetRef"] == {
        "apiVersion": "apps/v1",
        "kind": target["kind"],
        "name": target["metadata"]["name"],
    }


def test_signals_of_demand_are_metrics_that_our_server_exports(
    rendered: dict[str, list[dict[str, Any]]],
) -> None:
    exported = Metrics("support", lambda: Load(0, 0, None), 1).text().decode()
    (scaled,) = of_kind(rendered["production"], "ScaledObject")
    waiting, first = [t["metadata"]["query"] for t in scaled["spec"]["triggers"]]
    assert waiting == (
        'sum(num_requests_waiting{namespace="models",service="support"}) or vector(0)'
    )
    assert "# TYPE num_requests_waiting gauge" in exported
    assert 'rate(time_to_first_token_seconds_bucket{namespace="models",service="support"}' in first
    assert "# TYPE time_to_first_token_seconds histogram" in exported
    kinds = [t["metricType"] for t in scaled["spec"]["triggers"]]
    assert kinds == ["AverageValue", "Value"]


def test_other_servers_are_scaled_by_their_own_metrics(
    rendered: dict[str, list[dict[str, Any]]],
) -> None:
    def queries(name: str) -> str:
        (scaled,) = of_kind(rendered[name], "ScaledObject")
        return " ".join(t["metadata"]["query"] for t in scaled["spec"]["triggers"])

    assert "vllm:num_requests_waiting{" in queries("nim")
    assert "nv_inference_pending_request_count{" in queries("triton")
    assert "_histogram_ms_bucket{" in queries("triton")
    assert "/ 1000" in queries("triton")
    assert "avg(DCGM_FI_DEV_GPU_UTIL{" in queries("triton")
    old = template("-f", EXAMPLES / "nim.yaml", "--set", "nim.version=1")
    (scaled,) = of_kind(old, "ScaledObject")
    assert "sum(num_requests_waiting{" in scaled["spec"]["triggers"][0]["metadata"]["query"]


def test_the_plain_autoscaler_asks_for_what_the_adapter_is_told_to_make(
    rendered: dict[str, list[dict[str, Any]]],
) -> None:
    (scaler,) = of_kind(rendered["mig"], "HorizontalPodAutoscaler")
    asked = {m[m["type"].lower()]["metric"]["name"] for m in scaler["spec"]["metrics"]}
    (rules,) = of_kind(rendered["mig"], "ConfigMap")
    made = yaml.safe_load(rules["data"]["config.yaml"])["rules"]
    assert asked == {rule["name"]["as"] for rule in made}


def test_nim_gets_the_variables_of_its_version() -> None:
    example = ("-f", EXAMPLES / "nim.yaml")
    new = variables(container(template(*example)))
    assert new["NIM_MODEL_PATH"] == "/model"
    assert (new["NIM_PEFT_SOURCE"], new["NIM_PEFT_REFRESH_INTERVAL"]) == ("/loras", "60")
    assert new["NIM_TENSOR_PARALLEL_SIZE"] == "2"
    old = variables(container(template(*example, "--set", "nim.version=1")))
    assert old["NIM_MODEL_NAME"] == "/model"
    assert "NIM_MODEL_PATH" not in old


def test_monitors_and_rules_name_the_same_job(rendered: dict[str, list[dict[str, Any]]]) -> None:
    objects = rendered["production"]
    (monitor,) = of_kind(objects, "ServiceMonitor")
    label = monitor["spec"]["jobLabel"]
    (service,) = [s for s in of_kind(objects, "Service") if s["metadata"]["name"] == "support"]
    job = service["metadata"]["labels"][label]
    selected = monitor["spec"]["selector"]["matchLabels"]
    assert selected.items() <= service["metadata"]["labels"].items()
    (rule,) = of_kind(objects, "PrometheusRule")
    text = json.dumps(rule)
    assert f'job=\\"{job}\\"' in text
    assert "docker" not in text
    (dashboard,) = [c for c in of_kind(objects, "ConfigMap") if "serving.json" in c["data"]]
    assert json.loads(dashboard["data"]["serving.json"])["panels"]


def test_training_pods_get_what_the_cluster_asks_for(
    rendered: dict[str, list[dict[str, Any]]],
) -> None:
    objects = rendered["training"]
    (job,) = of_kind(objects, "Job")
    (cron,) = of_kind(objects, "CronJob")
    for pod in pods([job, cron]):
        (one,) = pod["containers"]
        assert variables(one)["MLFLOW_TRACKING_URI"] == "https://mlflow.example.com"
        assert variables(one)["NCCL_DEBUG"] == "WARN"
        assert one["envFrom"] == [{"secretRef": {"name": "bucket"}}]
        assert one["resources"]["limits"] == {"memory": "512Gi", "nvidia.com/gpu": 8}
        assert one["resources"]["requests"] == {"cpu": "32", "memory": "256Gi"}
        assert pod["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-H200"}
        assert pod["tolerations"]
        assert pod["imagePullSecrets"] == [{"name": "images"}]
    (several,) = pods([job])
    assert {NODE_RANK, MASTER, MASTER_PORT} <= set(variables(several["containers"][0]))
    assert several["containers"][0]["args"][-2:] == ["launcher=torchrun", "launcher.nodes=2"]
    (alone,) = pods([cron])
    assert NODE_RANK not in variables(alone["containers"][0])
    names = {s["metadata"]["name"] for s in of_kind(objects, "Service")}
    assert several["subdomain"] in names


def test_a_job_with_other_settings_has_another_name() -> None:
    """A Job cannot be changed."""
    example = ("-f", EXAMPLES / "training.yaml")
    (first,) = of_kind(template(*example), "Job")
    (again,) = of_kind(template(*example, "--set", "replicas=2"), "Job")
    (other,) = of_kind(template(*example, "--set", "jobs[0].settings[0]=seed=2"), "Job")
    assert again == first
    assert other["metadata"]["name"] != first["metadata"]["name"]
    assert re.fullmatch(r"support-tune-[0-9a-f]{6}", first["metadata"]["name"])


def weights(objects: list[dict[str, Any]]) -> dict[str, int]:
    (route,) = of_kind(objects, "HTTPRoute")
    (rule,) = route["spec"]["rules"]
    return {ref["name"]: ref["weight"] for ref in rule["backendRefs"]}


def test_a_rollout_asks_the_canary_before_it_goes_on(
    rendered: dict[str, list[dict[str, Any]]],
) -> None:
    objects = rendered["canary"]
    (rollout,) = of_kind(objects, "Rollout")
    canary = rollout["spec"]["strategy"]["canary"]
    assert weights(objects) == {canary["stableService"]: 100, canary["canaryService"]: 0}
    scale, weight, analysis = canary["steps"]
    assert weight == {"setWeight": 10}
    assert scale == {"setCanaryScale": {"replicas": 1}}
    (template,) = of_kind(objects, "AnalysisTemplate")
    assert analysis["analysis"]["templates"] == [{"templateName": template["metadata"]["name"]}]
    job = template["spec"]["metrics"][0]["provider"]["job"]["spec"]
    assert job["backoffLimit"] == 0, "a second try would overrule a decision"
    arguments = job["template"]["spec"]["containers"][0]["args"]
    assert accepted(arguments).share == 0.1
    # Each of the two reads the pods of one side, which Argo Rollouts marks.
    services = {s["metadata"]["name"]: s["spec"] for s in of_kind(objects, "Service")}
    for side, marked in (("stable", "stableMetadata"), ("canary", "canaryMetadata")):
        pods_of = services[f"support-{side}-pods"]
        assert pods_of["clusterIP"] == "None"
        assert canary[marked]["labels"].items() <= pods_of["selector"].items()


def test_a_job_may_change_the_weights_of_its_route_and_nothing_else(
    rendered: dict[str, list[dict[str, Any]]],
) -> None:
    objects = rendered["canary-route"]
    assert weights(objects) == {"support": 100, "support-next": 0}
    job = next(j for j in of_kind(objects, "Job"))
    pod = job["spec"]["template"]["spec"]
    (role,) = of_kind(objects, "Role")
    assert role["rules"] == [
        {
            "apiGroups": ["gateway.networking.k8s.io"], "resources": ["httproutes"],
            "resourceNames": ["support"], "verbs": ["get", "patch"],
        }
    ]  # fmt: skip
    (binding,) = of_kind(objects, "RoleBinding")
    assert binding["subjects"][0]["name"] == pod["serviceAccountName"]
    settings = accepted(pod["containers"][0]["args"])
    route = settings.http_route
    assert (route.name, route.namespace) == ("support", "models")
    assert {route.stable, route.candidate} == set(weights(objects))


def accepted(arguments: list[str]) -> CanaryConfig:
    """The settings that a pod's arguments give."""
    stage, *rest = arguments
    assert stage == "stage=canary"
    pairs = (word.split("=", 1) for word in rest)
    config = default_config({key: yaml.safe_load(value) for key, value in pairs})
    return config.canary


def test_a_canary_without_a_route_or_a_service_is_refused() -> None:
    rollout = ("-f", EXAMPLES / "canary.yaml")
    assert "give httpRoute.enabled=true" in refusal(*rollout, "--set", "httpRoute.enabled=false")
    assert "workload=StatefulSet" in refusal(*rollout, "--set", "workload=StatefulSet")
    assert "canary.service has no effect" in refusal(*rollout, "--set", "canary.service=other")
    route = ("-f", EXAMPLES / "canary-route.yaml")
    assert "needs canary.service" in refusal(*route, "--set", "canary.service=")


def test_secrets_and_claims_are_applied_before_the_server(
    rendered: dict[str, list[dict[str, Any]]],
) -> None:
    wave = {
        t["kind"]: int(t["metadata"]["annotations"]["argocd.argoproj.io/sync-wave"])
        for t in rendered["production"]
        if t["metadata"]["labels"]["app.kubernetes.io/name"] == "pipeline"
    }
    assert wave["ExternalSecret"] == wave["PersistentVolumeClaim"] < wave["NetworkPolicy"]
    assert wave["NetworkPolicy"] < wave["Deployment"] == wave["Service"] < wave["Ingress"]
    assert wave["Deployment"] < wave["ScaledObject"]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ("gpu.count=1,gpu.mig.profile=1g.10gb", "a pod has whole GPUs or slices of one"),
        ("gpu.mig.profile=half", "at '/gpu/mig/profile'"),
        ("gpu.count=two", "at '/gpu/count': got string, want integer"),
        ("replica=2", "additional properties 'replica' not allowed"),
        ("runtime=vlm", "at '/runtime': value must be one of"),
        ("model.path=", "no model: give model.path"),
        ("model.path=../secrets", "at '/model/path'"),
        ("image.digest=sha256:12", "at '/image/digest'"),
        ("runtime=nim", "needs image.repository and image.tag"),
        ("model.pull.enabled=true", "at '/model/pull/store'"),
        ("ingress.enabled=true", "at '/ingress/host'"),
        ("httpRoute.enabled=true,httpRoute.host=a.example.com", "at '/httpRoute/gateway'"),
        ("externalSecrets.enabled=true", "at '/externalSecrets/data'"),
        ("autoscaling.minReplicas=0", "at '/autoscaling/minReplicas'"),
        ("autoscaling.kind=hpa,autoscaling.minReplicas=5", "is more than autoscaling.maxReplicas"),
        ("autoscaling.kind=keda,autoscaling.gpuUtilization=80", "needs GPUs"),
        ("rollout.maxSurge=0", "leave no way to change a pod"),
        ("podSecurityContext.runAsNonRoot=false", "at '/podSecurityContext/runAsNonRoot'"),
        ("server.resources.limits.nvidia\\.com/gpu=1", "invalid propertyName 'nvidia.com/gpu'"),
        ("server.resources.limits.memory=lots", "at '/server/resources/limits/memory'"),
        ("server.settings[0]=max_queue=3", "at '/server/settings/0'"),
        ("server.arguments[0]=--x", "server.arguments has no effect with runtime=pipeline"),
        ("server.env[0].name=A", "at '/server/env/0'"),
        ("store.claim=,store.accessModes={ReadWriteOnce},replicas=2", "StatefulSet, where each"),
        ("retrain.enabled=true", "retrain.enabled needs training.image"),
        ("jobs[0].name=tune,jobs[0].stage=finetune", "training.claim"),
        ("jobs[0].name=p,jobs[0].stage=prepare,jobs[0].nodes=2", "at '/jobs/0/nodes'"),
        ("mlflow.imag=x", "additional properties 'imag' not allowed"),
        ("kserve.storageUri=/models", "at '/kserve/storageUri'"),
        ("retrain.schedule=daily", "at '/retrain/schedule'"),
    ],
)
def test_wrong_values_are_refused_before_anything_is_rendered(values: str, said: str) -> None:
    assert said in refusal(*GIVEN, "--set", values)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ("store.claim=,store.accessModes={ReadOnlyMany}", "model.pull writes into the claim"),
        ("model.path=a", "give one of them"),
        ("tracking.uri=", "model.pull asks the registry: give tracking.uri"),
        ("model.pull.digest=", "needs model.pull.digest, or model.pull.version"),
        ("runtime=vllm,image.repository=vllm", "needs model.pull.image"),
        ("kserve.kind=InferenceService", "model.pull has no effect with kserve"),
        ("monitoring.rules=true,runtime=triton,image.repository=t,model.pull.image=p", "exports"),
    ],
)
def test_a_pull_that_cannot_be_is_refused(values: str, said: str) -> None:
    pull = "enabled=true name=n store=s3://b version= digest=sha256:" + "0" * 64
    given = ",".join(f"model.pull.{one}" for one in pull.split())
    given += ",tracking.uri=https://mlflow.example.com"
    assert said in refusal("--set", given, "--set", values)


def test_kustomize_inflates_and_patches_it() -> None:
    folder = CHART.parents[1] / "kustomize/production"
    helm = run("kubectl", "kustomize", "--enable-helm", "--helm-command", _helm(),
               "--load-restrictor", "LoadRestrictionsNone", folder)  # fmt: skip
    assert not helm.returncode, helm.stderr
    objects = documents(helm.stdout)
    assert problems(objects, VERSIONS[-1]) == []
    (deployment,) = of_kind(objects, "Deployment")
    assert deployment["spec"]["replicas"] == 3
    assert container(objects)["image"] == "images.example.com/pipeline:serve-cpu-0.1.0"
    assert server(objects)["spec"]["template"]["spec"]["nodeSelector"] == {"node-pool": "serving"}


def _helm() -> str:
    from tests.unit.deploy.kubernetes_tools import program

    return program("helm")
