"""Refusals of measures that follow from the settings, files and this machine alone."""

from pathlib import Path

from pipeline.config.schema import Config
from pipeline.core.errors import ConfigError, DataError
from pipeline.core.extras import require
from pipeline.evaluation import embedding, structure
from pipeline.evaluation.benchmarks import EXTRA


def check_measures(config: Config) -> None:
    """Refuse measures that this machine cannot take.

    Raises:
        DataError: a file is missing, or is not what it should be.
        ConfigError: the judge's key is not there.
        MissingRuntime: the harness of evaluate.benchmarks is not installed.
    """
    settings = config.evaluate
    for path in settings.files():
        if not path.exists():
            raise DataError(
                f"{path} does not exist: correct the setting of evaluate that names it (relative "
                f"paths are relative to {Path.cwd()})"
            )
    if "json_schema" in settings.measured and settings.json_schema:
        structure.json_schema_check(settings.json_schema)
    if "embedding_similarity" in settings.measured and settings.embedder:
        embedding.check(settings.embedder)
    variable = settings.judge.endpoint.key_variable
    if variable and {"judge_score", "judge_wins"} & set(settings.measured):
        from pipeline.client.addresses import headers

        if not headers(variable):
            raise ConfigError(
                f"evaluate.judge.endpoint.key_variable={variable}: this environment variable is "
                "not set: set it to the API key"
            )
    if settings.benchmarks:
        require(EXTRA, "evaluate.benchmarks", "leave it out")
