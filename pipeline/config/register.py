"""Settings of MLflow's registry: the model's name, and where the files of its versions are."""

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator

from pipeline.config.section import Place, Section

Version = Annotated[int, Field(ge=1, le=10**9)] | str  # a number or an alias
MLFLOW = "mlflow"  # of register.store: MLflow's own artifact store
# Forms of register.store beside a folder and MLFLOW.
STORES = {
    "s3": "s3://BUCKET/PREFIX",
    "gs": "gs://BUCKET/PREFIX",
    "az": "az://CONTAINER/PREFIX",
    "oci": "oci://HOST/NAME",
}


def registrable(name: str) -> str:
    """The name with - for each character that MLflow refuses in a registered model's name."""
    return re.sub(r"[/:.%\"']", "-", name)


class RegisterConfig(Section):
    """The registered model."""

    name: str = Field(min_length=1, description="Name of the registered model in MLflow")
    overrule: str | None = Field(
        min_length=1,
        description="Reason why this version becomes champion whatever the comparison says, if it "
        "passed the gate; it is recorded with the version",
    )

    store: str | None = Field(
        min_length=1,
        description="Where files of versions are kept: a folder, s3://, gs://, az://, oci://, or "
        "mlflow; null pushes none, and pulls from where a version says",
    )
    version: Version | None = Field(
        description="Version that stage=pull and stage=promote are about: a number, an alias, or "
        "the digest of its engine"
    )
    reason: str | None = Field(
        min_length=1,
        max_length=1000,
        description="Why stage=promote or stage=rollback moves champion; it is recorded",
    )

    @field_validator("store")
    @classmethod
    def _place(cls, store: str | None) -> str | None:
        if store is None or store == MLFLOW:
            return store
        scheme, between, name = store.partition("://")
        if not between:
            if re.match(r"^\w+:", store):
                raise ValueError(_FORMS)
            return store
        if scheme not in STORES or "@" in name:
            raise ValueError(_FORMS)
        parts = name.rstrip("/").split("/")
        least = 2 if scheme == "oci" else 1
        if len(parts) < least or any(not re.match(_PART, part) for part in parts):
            raise ValueError(f"it is not of the form {STORES[scheme]}")
        if scheme == "oci" and "/".join(parts[1:]) != "/".join(parts[1:]).lower():
            raise ValueError("registries take only lower case in a repository's name")
        return store

    @field_validator("name")
    @classmethod
    def _accepted_by_mlflow(cls, name: str) -> str:
        allowed = registrable(name)
        if name != allowed:
            raise ValueError(
                f"MLflow takes no / : . % or quotes in a model's name: set register.name={allowed}"
            )
        return name


class PullConfig(Section):
    """Which files of a registered version are fetched, and where to."""

    to: Place | None = Field(
        description="Folder for the files; null: among the artifacts, where serve.version finds "
        "an engine"
    )
    artifact: Literal["build", "merge", "export", "finetune"] = Field(
        description="What is fetched: the engine (build), the tuned model (merge), its quantized "
        "checkpoints (export) or the adapter as trained (finetune)"
    )


_PART = r"^[\w][\w.:-]*$"
_FORMS = (
    f"give a folder, {MLFLOW}, or one of {', '.join(STORES.values())}; credentials come from the "
    "environment"
)
