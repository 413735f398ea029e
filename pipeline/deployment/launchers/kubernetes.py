"""Kubernetes: a Job, a JobSet or a TrainJob with one pod per machine.

Does not use NeMo-Run, whose executors for Kubernetes (0.7) need more than a cluster: KubeRay's
operator (and a Ray cluster instead of torchrun), SkyPilot, DGX Cloud or Lepton. Each pod runs the
command once with torchrun's variables, and the pod of index 0 leads, as with Slurm's script.

job        an indexed Job, and a headless service by which pods find the first. It fails as soon as
           one pod fails, and succeeds with the first pod.
jobset     a JobSet: its controller makes the service, and starts all pods again when one fails.
trainjob   a TrainJob of Kubeflow's Trainer, whose runtime sets torchrun's variables itself.
"""

import os
import re
import secrets
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.config.launcher import KubernetesLauncher
from pipeline.config.schema import Config
from pipeline.core.errors import ConfigError, MissingRuntime, PipelineError
from pipeline.deployment.launchers.job import GRAPH_STAGES, JobSpec, check_folders
from pipeline.training.torchrun import MASTER, MASTER_PORT, NODE_RANK, PORT

INDEX = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
NAME_LENGTH = 52
TRACKING_URI = "MLFLOW_TRACKING_URI"
# Of a TrainJob's runtime: the job whose pods train, and the container that runs the command.
NODE = "node"


def render(
    job: JobSpec, launcher: KubernetesLauncher, config: Config, schedule: str | None = None
) -> str:
    """The manifest in YAML.

    Args:
        schedule: a cron expression for repeated runs; None to run once, now.

    Raises:
        ConfigError: a folder of the settings is not on the volume that the pods share; or a
            credential would stand in the manifest; or a schedule is for another kind than a Job.
    """
    import yaml

    volume = f"the volume of launcher.claim={launcher.claim}"
    check_folders(job, config, [Path(launcher.mount)], volume)
    variables = _variables(launcher, config)
    artifacts = config.artifacts
    if schedule is not None:
        if launcher.kind != "job":
            raise ConfigError(
                f"retrain.schedule makes a CronJob, which starts no launcher.kind={launcher.kind}: "
                "use launcher.kind=job"
            )
        made = _cron_job(job, launcher, artifacts, variables, schedule)
        return yaml.safe_dump(made, sort_keys=False)
    name = _name(job)
    if launcher.kind == "jobset":
        parts = [_job_set(name, job, launcher, artifacts, variables)]
    elif launcher.kind == "trainjob":
        parts = [_train_job(name, job, launcher, artifacts, variables)]
    else:
        parts = [_job(name, job, launcher, artifacts, variables)]
        if job.nodes > 1:
            parts.insert(0, _service(name, launcher))
    return yaml.safe_dump_all(parts, sort_keys=False)


def _variables(launcher: KubernetesLauncher, config: Config) -> list[dict[str, Any]]:
    """Those of the container that settings decide.

    Raises:
        ConfigError: the tracking server's address holds a password.
    """
    found = _pairs(launcher.env)
    given = os.environ.get(TRACKING_URI, "")
    if config.tracking.enabled and "@" in given:
        raise ConfigError(
            f"{TRACKING_URI} holds a password, which everybody could read in the manifest: put it "
            "into a Secret, and name that in launcher.secrets"
        )
    uri = given or config.tracking.uri or ""
    # The command itself carries a reference to a variable, which the pod resolves.
    kept = "${" in uri or "@" in uri or uri.startswith(("file:", "sqlite:"))
    if config.tracking.enabled and "://" in uri and not kept:
        found = {TRACKING_URI: uri, **found}
    return [{"name": name, "value": value} for name, value in found.items()]


def submit(manifest: str) -> str:
    """Create the objects with kubectl.

    Returns:
        kubectl's output, and the command that removes what Kubernetes does not remove by itself.

    Raises:
        MissingRuntime: kubectl is not installed.
        PipelineError: the cluster refused the job.
    """
    import yaml

    if shutil.which("kubectl") is None:
        raise MissingRuntime(
            "launcher=kubernetes needs kubectl, which is not on the PATH: install it, or print the "
            "manifest with launcher.dry_run=true and apply it elsewhere"
        )
    *service, created_job = yaml.safe_load_all(manifest)
    # A CronJob has a fixed name, and an existing one is updated.
    verb = "apply" if created_job["kind"] == "CronJob" else "create"
    done = subprocess.run(
        ["kubectl", verb, "-f", "-"], input=manifest, capture_output=True, text=True
    )
    if done.returncode:
        output = " ".join(done.stderr.split())
        raise PipelineError(f"kubectl refused the job: {output}")
    created = ", ".join(done.stdout.split("\n")[:-1])
    if not service:
        return created
    made = f"{created_job['metadata']['name']} -n {created_job['metadata']['namespace']}"
    return f"{created} (after it has ended, remove both with `kubectl delete service,job {made}`)"


def _pairs(words: Sequence[str]) -> dict[str, str]:
    """Settings of the form key=value."""
    return dict(word.split("=", 1) for word in words)


def _name(job: JobSpec, *, fixed: bool = False) -> str:
    """A DNS label that begins with a letter, as a Service's name must.

    It is new each time, since a failed job may still exist. Kubernetes adds the pod's number and
    six characters; the limit is 63.

    fixed: whether the name is the same each time, for an object that exists once.
    """
    end = f"-{job.stage}" + ("" if fixed else f"-{secrets.token_hex(2)}")
    model = job.name.removesuffix(f"-{job.stage}").lower()
    model = re.sub(r"[^a-z0-9]+", "-", model).strip("-")
    if not model[:1].isalpha():
        model = f"m-{model}"
    return model[: NAME_LENGTH - len(end)].strip("-") + end


def _service(name: str, launcher: KubernetesLauncher) -> dict[str, Any]:
    """A headless service, which gives each pod of the Job a DNS name."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": launcher.namespace},
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {"job-name": name},
        },
    }


def _job(
    name: str,
    job: JobSpec,
    launcher: KubernetesLauncher,
    artifacts: Path,
    variables: list[dict[str, Any]],
) -> dict[str, Any]:
    pod = _pod(job, launcher, artifacts, variables)
    if job.nodes > 1:
        _rank(pod, f"{name}-0.{name}")
        pod["subdomain"] = name
    manifest: dict[str, Any] = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": launcher.namespace},
        "spec": {
            **_machines(job),
            "backoffLimit": 0,  # one failed pod ends the job; submit it again to resume
            "ttlSecondsAfterFinished": 7 * 24 * 3600,
            "template": {"spec": pod},
        },
    }
    if job.nodes > 1:
        # Other pods may still wait when the first finds that its artifact exists already.
        manifest["spec"]["successPolicy"] = {"rules": [{"succeededIndexes": "0"}]}
    return manifest


def _job_set(
    name: str,
    job: JobSpec,
    launcher: KubernetesLauncher,
    artifacts: Path,
    variables: list[dict[str, Any]],
) -> dict[str, Any]:
    pod = _pod(job, launcher, artifacts, variables)
    if job.nodes > 1:
        _rank(pod, f"{name}-{NODE}-0-0.{name}")
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": name, "namespace": launcher.namespace},
        "spec": {
            "network": {"enableDNSHostnames": True, "subdomain": name},
            "failurePolicy": {"maxRestarts": launcher.retries},
            "ttlSecondsAfterFinished": 7 * 24 * 3600,
            "replicatedJobs": [
                {
                    "name": NODE,
                    "replicas": 1,
                    "template": {
                        "spec": {**_machines(job), "backoffLimit": 0, "template": {"spec": pod}}
                    },
                }
            ],
        },
    }


def _train_job(
    name: str,
    job: JobSpec,
    launcher: KubernetesLauncher,
    artifacts: Path,
    variables: list[dict[str, Any]],
) -> dict[str, Any]:
    pod = _pod(job, launcher, artifacts, variables)
    (container,) = pod.pop("containers")
    command = container["command"]
    if "workingDir" in container:  # a TrainJob has no such field
        folder = container["workingDir"]
        command = ["sh", "-c", 'cd "$0" && exec "$@"', folder, *command]
    trainer = {
        "image": container["image"],
        "command": command,
        "numNodes": job.nodes,
        # Its runtime's torchrun is not used: the command starts the ranks of its machine itself.
        "numProcPerNode": 1,
        "env": container["env"],
        "resourcesPerNode": container["resources"],
    }
    del pod["restartPolicy"], pod["automountServiceAccountToken"]  # the runtime's
    pod["containers"] = [
        {"name": NODE, **{k: container[k] for k in ("volumeMounts", "securityContext")}}
    ]
    if "envFrom" in container:
        raise ConfigError(
            "launcher.secrets has no effect with launcher.kind=trainjob, whose containers take no "
            "envFrom: put the secrets into the runtime, or use launcher.kind=jobset"
        )
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": {"name": name, "namespace": launcher.namespace},
        "spec": {
            "runtimeRef": {"name": launcher.runtime},
            "trainer": {key: value for key, value in trainer.items() if value},
            "runtimePatches": [
                {
                    "manager": "pipeline.finetune-to-serve/launcher",
                    "trainingRuntimeSpec": {
                        "template": {
                            "spec": {
                                "replicatedJobs": [
                                    {
                                        "name": NODE,
                                        "template": {"spec": {"template": {"spec": pod}}},
                                    }
                                ]
                            }
                        }
                    },
                }
            ],
        },
    }


def _cron_job(
    job: JobSpec,
    launcher: KubernetesLauncher,
    artifacts: Path,
    variables: list[dict[str, Any]],
    schedule: str,
) -> dict[str, Any]:
    name = _name(job, fixed=True)
    made = _job(name, job, launcher, artifacts, variables)
    return {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": {"name": name, "namespace": launcher.namespace},
        "spec": {
            "schedule": schedule,
            "concurrencyPolicy": "Forbid",  # a run may take longer than the interval
            "jobTemplate": {"spec": made["spec"]},
        },
    }


def _machines(job: JobSpec) -> dict[str, Any]:
    return {"completionMode": "Indexed", "completions": job.nodes, "parallelism": job.nodes}


def _rank(pod: dict[str, Any], first: str) -> None:
    """Tell the pods of a job their number, and where the first one is."""
    pod["containers"][0]["env"] += [
        {"name": NODE_RANK, "valueFrom": {"fieldRef": {"fieldPath": INDEX}}},
        {"name": MASTER, "value": first},
        {"name": MASTER_PORT, "value": str(PORT)},
    ]


def _pod(
    job: JobSpec, launcher: KubernetesLauncher, artifacts: Path, variables: list[dict[str, Any]]
) -> dict[str, Any]:
    """A pod of the restricted security profile that runs the command."""
    resources: dict[str, Any] = {}
    if job.gpus:
        resources["limits"] = {"nvidia.com/gpu": job.gpus}
    if launcher.requests:
        resources["requests"] = _pairs(launcher.requests)
    container: dict[str, Any] = {
        "name": "pipeline",
        "image": launcher.container_image,
        "command": list(job.command),
        "env": list(variables),
        "resources": resources,
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [
            {"name": "shared", "mountPath": launcher.mount},
            {"name": "shm", "mountPath": "/dev/shm"},
        ],
    }
    if launcher.secrets:
        container["envFrom"] = [{"secretRef": {"name": name}} for name in launcher.secrets]
    if job.stage in GRAPH_STAGES:
        container["workingDir"] = str(artifacts.parent)  # the checkout in which DVC runs
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 1000,
            "fsGroup": 1000,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [
            {"name": "shared", "persistentVolumeClaim": {"claimName": launcher.claim}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": launcher.shared_memory}},
        ],
    }
    if launcher.service_account:
        pod["serviceAccountName"] = launcher.service_account
    if launcher.pull_secrets:
        pod["imagePullSecrets"] = [{"name": name} for name in launcher.pull_secrets]
    if launcher.node_selector:
        pod["nodeSelector"] = _pairs(launcher.node_selector)
    if launcher.tolerations:
        pod["tolerations"] = [{"key": k, "operator": "Exists"} for k in launcher.tolerations]
    return pod
