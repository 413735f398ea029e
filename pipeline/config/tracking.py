"""Settings of tracking with MLflow."""

import re

from pydantic import Field, field_validator

from pipeline.config.section import Section


class TrackingConfig(Section):
    """What is tracked in MLflow, and where."""

    enabled: bool = Field(description="Whether runs are tracked in MLflow")
    uri: str | None = Field(
        description="MLflow server; null is a SQLite store beside the artifacts, and "
        "MLFLOW_TRACKING_URI takes precedence"
    )
    experiment: str = Field(min_length=1, description="Name of the MLflow experiment")
    upload_weights: bool = Field(
        description="Whether weights are uploaded; otherwise their place and digest are recorded"
    )

    @field_validator("uri")
    @classmethod
    def _store(cls, uri: str | None) -> str | None:
        if uri is not None and not re.match(_STORES, uri):
            raise ValueError(
                "MLflow takes no such store: give http://host:5000, https://…, sqlite:////file.db, "
                "postgresql://…, mysql://…, databricks, or null for the store beside the artifacts"
            )
        return uri


_STORES = (
    r"https?://[^/\s]+|file:|sqlite:///|(postgresql|mysql|mssql)(\+\w+)?://"
    r"|databricks(-uc)?(://.*)?$|/|\.{1,2}/"
)
