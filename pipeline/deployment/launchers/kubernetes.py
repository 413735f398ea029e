"""Kubernetes: an indexed Job with one pod per machine, and a service by which pods find the first.

Does not use NeMo-Run, whose executors for Kubernetes (0.7) need more than a cluster: KubeRay's
operator (and a Ray cluster instead of torchrun), SkyPilot, DGX Cloud or Lepton. A plain Job does
the same as Slurm's script: each pod runs the command once with torchrun's variables, and the pod of
index 0 leads. The Job fails as soon as one pod fails, and succeeds with the first pod.
"""

import re
import secrets
import shutil
import subprocess
from pathlib import Path
from typing import Any

from pipeline.config.launcher import KubernetesLauncher
from pipeline.core.errors import MissingRuntime, PipelineError
from pipeline.deployment.launchers.job import GRAPH_STAGES, JobSpec, check_artifacts
from pipeline.training.torchrun import MASTER, MASTER_PORT, NODE_RANK, PORT

INDEX = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
NAME_LENGTH = 52


def render(
    job: JobSpec, launcher: KubernetesLauncher, artifacts: Path, schedule: str | None = None
) -> str:
    """The manifest in YAML.

    Args:
        schedule: a cron expression for repeated runs; None to run once, now.

    Raises:
        ConfigError: artifacts are not on the volume that the pods share or, for a stage that runs
            all others, not in a checkout there.
    """
    import yaml

    volume = f"the volume of launcher.claim={launcher.claim}"
    check_artifacts(job, artifacts, [Path(launcher.mount)], volume)
    if schedule is not None:
        return yaml.safe_dump(_cron_job(job, launcher, artifacts, schedule), sort_keys=False)
    name = _name(job)
    parts = [_job(name, job, launcher, artifacts)]
    if job.nodes > 1:
        parts.insert(0, _service(name, launcher))
    return yaml.safe_dump_all(parts, sort_keys=False)


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


def _job(name: str, job: JobSpec, launcher: KubernetesLauncher, artifacts: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": launcher.namespace},
        "spec": {
            "completionMode": "Indexed",
            "completions": job.nodes,
            "parallelism": job.nodes,
            "backoffLimit": 0,  # one failed pod ends the job; submit it again to resume
            "ttlSecondsAfterFinished": 7 * 24 * 3600,
            "template": {"spec": _pod(name, job, launcher, artifacts)},
        },
    }
    if job.nodes > 1:
        # Other pods may still wait when the first finds that its artifact exists already.
        manifest["spec"]["successPolicy"] = {"rules": [{"succeededIndexes": "0"}]}
    return manifest


def _cron_job(
    job: JobSpec, launcher: KubernetesLauncher, artifacts: Path, schedule: str
) -> dict[str, Any]:
    name = _name(job, fixed=True)
    return {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": {"name": name, "namespace": launcher.namespace},
        "spec": {
            "schedule": schedule,
            "concurrencyPolicy": "Forbid",  # a run may take longer than the interval
            "jobTemplate": {"spec": _job(name, job, launcher, artifacts)["spec"]},
        },
    }


def _pod(name: str, job: JobSpec, launcher: KubernetesLauncher, artifacts: Path) -> dict[str, Any]:
    variables: list[dict[str, Any]] = []
    if job.nodes > 1:
        variables = [
            {"name": NODE_RANK, "valueFrom": {"fieldRef": {"fieldPath": INDEX}}},
            {"name": MASTER, "value": f"{name}-0.{name}"},
            {"name": MASTER_PORT, "value": str(PORT)},
        ]
    container: dict[str, Any] = {
        "name": "pipeline",
        "image": launcher.container_image,
        "command": list(job.command),
        "env": variables,
        "resources": {"limits": {"nvidia.com/gpu": job.gpus}},
        "volumeMounts": [
            {"name": "shared", "mountPath": launcher.mount},
            {"name": "shm", "mountPath": "/dev/shm"},
        ],
    }
    if job.stage in GRAPH_STAGES:
        container["workingDir"] = str(artifacts.parent)  # the checkout in which DVC runs
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "containers": [container],
        "volumes": [
            {"name": "shared", "persistentVolumeClaim": {"claimName": launcher.claim}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": launcher.shared_memory}},
        ],
    }
    if job.nodes > 1:
        pod["subdomain"] = name
    return pod
