"""Settings of tracking with MLflow."""

from pydantic import Field

from pipeline.config.section import Section


class TrackingConfig(Section):
    """What is tracked in MLflow, and where."""

    enabled: bool = Field(description="Whether runs are tracked in MLflow")
    uri: str | None = Field(
        description="MLflow server; null is a SQLite store beside the artifacts, and "
        "MLFLOW_TRACKING_URI takes precedence"
    )
    experiment: str = Field(description="Name of the MLflow experiment")
    upload_weights: bool = Field(
        description="Whether weights are uploaded; otherwise their place and digest are recorded"
    )
