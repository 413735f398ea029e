"""The environment variables that users of MLflow, Hugging Face, CUDA and Hydra expect to count.

Each has an effect, or is refused, or is documented as not read: docs/settings.md prints this table.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pipeline.config.schema import Config
from pipeline.core.errors import ConfigError

TRACKING_URI, EXPERIMENT = "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"
State = Literal["read", "refused", "not read"]


@dataclass(frozen=True)
class Variable:
    """An environment variable. text: what it does, or what to do instead."""

    name: str
    state: State
    text: str


VARIABLES = (
    Variable(TRACKING_URI, "read", "MLflow server; comes before `tracking.uri`"),
    Variable(EXPERIMENT, "read", "MLflow experiment; comes before `tracking.experiment`"),
    Variable(
        "MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD, MLFLOW_TRACKING_TOKEN", "read",
        "by MLflow's client, for a server that asks for them; never written to a file",
    ),
    Variable(
        "MLFLOW_TRACKING_INSECURE_TLS, MLFLOW_TRACKING_SERVER_CERT_PATH, "
        "MLFLOW_HTTP_REQUEST_TIMEOUT, MLFLOW_HTTP_REQUEST_MAX_RETRIES", "read",
        "by MLflow's client",
    ),
    Variable(
        "MLFLOW_EXPERIMENT_ID", "refused",
        f"name the experiment with {EXPERIMENT} or tracking.experiment",
    ),
    Variable(
        "MLFLOW_RUN_ID", "refused",
        "each stage is a run of its own: unset it, and give tracking.experiment",
    ),
    Variable("MLFLOW_RUN_NAME", "not read", "runs are named after their stages"),
    Variable(
        "CUDA_VISIBLE_DEVICES", "read",
        "the GPUs that a command sees; empty: none, so that it computes on the CPU",
    ),
    Variable(
        "OMP_NUM_THREADS", "read",
        "threads of a training process; without it the cores are divided among the processes",
    ),
    Variable("NCCL_…, PYTORCH_CUDA_ALLOC_CONF, TORCH_…", "read", "by the libraries themselves"),
    Variable(
        "PET_NNODES, PET_NODE_RANK, PET_MASTER_ADDR, PET_MASTER_PORT", "read",
        "as by torchrun, with `launcher=torchrun`",
    ),
    Variable("SERVE_API_KEY", "read", "a key that clients of `stage=serve` must send"),
    Variable("SERVE_TLS_KEY_PASSWORD", "read", "the password of `serve.tls_key`"),
    Variable("REMOTE_API_KEY", "read", "the key that `engine=remote` sends"),
    Variable(
        "SERVE_WEBHOOK_SECRET", "read",
        "the secret of MLflow's webhooks, with `serve.follow` ([registry](registry.md))",
    ),
    Variable(
        "AWS_…, GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_…, OCI_USERNAME, OCI_PASSWORD, "
        "DOCKER_CONFIG", "read",
        "by the clients of `register.store` ([registry](registry.md)); never written to a file",
    ),
    Variable("OTEL_…", "read", "by the server: where traces go ([serving](serving.md))"),
    Variable(
        "HF_TOKEN, HF_HOME, HF_ENDPOINT, HF_HUB_OFFLINE", "read",
        "by Hugging Face's client, where `model.path` is `hf://…` ([sources](sources.md)); a token "
        "is never written to a file",
    ),
    Variable("HYDRA_FULL_ERROR", "not read", "`--traceback` shows where an error arose"),
    Variable("WANDB_…, COMET_…", "not read", "runs are tracked in MLflow alone"),
)  # fmt: skip


def given_in_environment(name: str, environment: Mapping[str, str] = os.environ) -> str | None:
    """The value of a variable; None if it is not set or empty."""
    return environment.get(name) or None


def check_environment(config: Config, environment: Mapping[str, str] = os.environ) -> None:
    """Refuse variables that ask tracking for what it does not do.

    Raises:
        ConfigError: names the variable, and what to set instead.
    """
    if not config.tracking.enabled:
        return
    for variable in VARIABLES:
        if variable.state == "refused" and given_in_environment(variable.name, environment):
            raise ConfigError(f"the environment variable {variable.name} is not read: "
                              f"{variable.text}, or set tracking.enabled=false")  # fmt: skip
