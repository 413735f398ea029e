"""The versions in the registry: alias, training, served accuracy, engine, size, where each runs.

    python -m pipeline stage=versions

The changes of champion are listed below the table: who, when and why.
"""

from pipeline.config.schema import Config


def run(config: Config) -> None:
    """
    Raises:
        ArtifactError: no version is registered. PipelineError: the registry does not answer.
    """
    from pipeline.deployment.version_table import show

    show(config)
