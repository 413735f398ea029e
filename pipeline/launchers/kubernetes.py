"""Kubernetes: an indexed Job of one pod a machine, and the service by which they find the first.

Written here and not through NeMo-Run, whose executors for Kubernetes (0.7) need more than a
cluster: KubeRay's operator (and a Ray cluster in place of torchrun), SkyPilot, DGX Cloud or Lepton.
A plain Job does what Slurm's script does: each pod runs the command once with torchrun's variables,
the pod of index 0 leads, the Job fails as soon as one pod does and succeeds with the first.
"""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from pipeline.adapters.ranks import MASTER, MASTER_PORT, NODE_RANK, PORT
from pipeline.config import KubernetesLauncher
from pipeline.errors import ConfigError, MissingRuntime, PipelineError
from pipeline.launchers import Work

INDEX = "metadata.annotations['batch.kubernetes.io/job-completion-index']"


def render(work: Work, launcher: KubernetesLauncher, artifacts: Path) -> str:
    """The manifest, in YAML.

    Raises:
        ConfigError: artifacts are not on the volume that the pods share.
    """
    import yaml

    if not artifacts.is_relative_to(launcher.mount):
        raise ConfigError(
            f"artifacts={artifacts} would be lost with the pod: give artifacts="
            f"{launcher.mount}/artifacts, on the volume that launcher.claim={launcher.claim} names"
        )
    # A DNS label, as names of Jobs and services must be.
    name = re.sub(r"[^a-z0-9]+", "-", work.name.lower()).strip("-")[:52]
    parts = [_job(name, work, launcher)]
    if work.nodes > 1:
        parts.insert(0, _service(name, launcher))
    return yaml.safe_dump_all(parts, sort_keys=False)


def submit(manifest: str) -> str:
    """Create it with kubectl; what kubectl says.

    Raises:
        MissingRuntime: there is no kubectl. PipelineError: the cluster refused.
    """
    if shutil.which("kubectl") is None:
        raise MissingRuntime(
            "launcher=kubernetes needs kubectl, which is not on the PATH: install it, or write the "
            "manifest to a file with launcher.dry_run=true and apply it elsewhere"
        )
    done = subprocess.run(
        ["kubectl", "create", "-f", "-"], input=manifest, capture_output=True, text=True
    )
    if done.returncode:
        said = " ".join(done.stderr.split())
        raise PipelineError(f"kubectl refused the job: {said}")
    return ", ".join(done.stdout.split("\n")[:-1])


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


def _job(name: str, work: Work, launcher: KubernetesLauncher) -> dict[str, Any]:
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
            "template": {"spec": _pod(name, work, launcher)},
        },
    }
    if work.nodes > 1:
        # The pods that follow may still wait when the first has found its work done before.
        job["spec"]["successPolicy"] = {"rules": [{"succeededIndexes": "0"}]}
    return job


def _pod(name: str, work: Work, launcher: KubernetesLauncher) -> dict[str, Any]:
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
