"""Kubernetes: an indexed Job of one pod a machine, and the service by which they find the first.

Written here and not through NeMo-Run, whose executors for Kubernetes (0.7) need more than a
cluster: KubeRay's operator (and a Ray cluster in place of torchrun), SkyPilot, DGX Cloud or Lepton.
A plain Job does what Slurm's script does: each pod runs the command once with torchrun's variables,
the pod of index 0 leads, the Job fails as soon as one pod does and succeeds with the first.
"""

import re
import secrets
import shutil
import subprocess
from pathlib import Path
from typing import Any

from pipeline.config.launcher import KubernetesLauncher
from pipeline.core.errors import MissingRuntime, PipelineError
from pipeline.deployment.launchers.job import GRAPH, Work, check_artifacts
from pipeline.training.torchrun import MASTER, MASTER_PORT, NODE_RANK, PORT

INDEX = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
NAME_LENGTH = 52


def render(
    work: Work, launcher: KubernetesLauncher, artifacts: Path, schedule: str | None = None
) -> str:
    """The manifest, in YAML.

    schedule: cron's expression of when it runs, again and again; None: once, now.

    Raises:
        ConfigError: artifacts are not on the volume that the pods share, or for the whole graph not
            in a checkout there.
    """
    import yaml

    volume = f"the volume that launcher.claim={launcher.claim} names"
    check_artifacts(work, artifacts, [Path(launcher.mount)], volume)
    if schedule is not None:
        return yaml.safe_dump(_cron_job(work, launcher, artifacts, schedule), sort_keys=False)
    name = _name(work)
    parts = [_job(name, work, launcher, artifacts)]
    if work.nodes > 1:
        parts.insert(0, _service(name, launcher))
    return yaml.safe_dump_all(parts, sort_keys=False)


def submit(manifest: str) -> str:
    """Create it with kubectl; what kubectl says, and how to remove what does not go by itself.

    Raises:
        MissingRuntime: there is no kubectl. PipelineError: the cluster refused.
    """
    import yaml

    if shutil.which("kubectl") is None:
        raise MissingRuntime(
            "launcher=kubernetes needs kubectl, which is not on the PATH: install it, or write the "
            "manifest to a file with launcher.dry_run=true and apply it elsewhere"
        )
    *service, job = yaml.safe_load_all(manifest)
    verb = "apply" if job["kind"] == "CronJob" else "create"  # it has one name, and is changed
    done = subprocess.run(
        ["kubectl", verb, "-f", "-"], input=manifest, capture_output=True, text=True
    )
    if done.returncode:
        said = " ".join(done.stderr.split())
        raise PipelineError(f"kubectl refused the job: {said}")
    created = ", ".join(done.stdout.split("\n")[:-1])
    if not service:
        return created
    made = f"{job['metadata']['name']} -n {job['metadata']['namespace']}"
    return f"{created} (once it has ended, remove both with `kubectl delete service,job {made}`)"


def _name(work: Work, *, again: bool = False) -> str:
    """A DNS label that begins with a letter, as a Service's must, and new each time: what failed
    before may still be there. Kubernetes adds a pod's number and six characters, 63 at most.

    again: the same each time, for what is there only once."""
    end = f"-{work.stage}" + ("" if again else f"-{secrets.token_hex(2)}")
    model = work.name.removesuffix(f"-{work.stage}").lower()
    model = re.sub(r"[^a-z0-9]+", "-", model).strip("-")
    if not model[:1].isalpha():
        model = f"m-{model}"
    return model[: NAME_LENGTH - len(end)].strip("-") + end


def _service(name: str, launcher: KubernetesLauncher) -> dict[str, Any]:
    """Without an address of its own: it gives each pod of the Job a name."""
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


def _job(name: str, work: Work, launcher: KubernetesLauncher, artifacts: Path) -> dict[str, Any]:
    job: dict[str, Any] = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": launcher.namespace},
        "spec": {
            "completionMode": "Indexed",
            "completions": work.nodes,
            "parallelism": work.nodes,
            "backoffLimit": 0,  # one pod that fails ends all; the command then goes on
            "ttlSecondsAfterFinished": 7 * 24 * 3600,
            "template": {"spec": _pod(name, work, launcher, artifacts)},
        },
    }
    if work.nodes > 1:
        # The pods that follow may still wait when the first has found its work done before.
        job["spec"]["successPolicy"] = {"rules": [{"succeededIndexes": "0"}]}
    return job


def _cron_job(
    work: Work, launcher: KubernetesLauncher, artifacts: Path, schedule: str
) -> dict[str, Any]:
    name = _name(work, again=True)
    return {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": {"name": name, "namespace": launcher.namespace},
        "spec": {
            "schedule": schedule,
            "concurrencyPolicy": "Forbid",  # a run may take longer than the time between two
            "jobTemplate": {"spec": _job(name, work, launcher, artifacts)["spec"]},
        },
    }


def _pod(name: str, work: Work, launcher: KubernetesLauncher, artifacts: Path) -> dict[str, Any]:
    variables: list[dict[str, Any]] = []
    if work.nodes > 1:
        variables = [
            {"name": NODE_RANK, "valueFrom": {"fieldRef": {"fieldPath": INDEX}}},
            {"name": MASTER, "value": f"{name}-0.{name}"},
            {"name": MASTER_PORT, "value": str(PORT)},
        ]
    container: dict[str, Any] = {
        "name": "pipeline",
        "image": launcher.container_image,
        "command": list(work.command),
        "env": variables,
        "resources": {"limits": {"nvidia.com/gpu": work.gpus}},
        "volumeMounts": [
            {"name": "shared", "mountPath": launcher.mount},
            {"name": "shm", "mountPath": "/dev/shm"},
        ],
    }
    if work.stage in GRAPH:
        container["workingDir"] = str(artifacts.parent)  # the checkout that DVC works in
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "containers": [container],
        "volumes": [
            {"name": "shared", "persistentVolumeClaim": {"claimName": launcher.claim}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": launcher.shared_memory}},
        ],
    }
    if work.nodes > 1:
        pod["subdomain"] = name
    return pod
