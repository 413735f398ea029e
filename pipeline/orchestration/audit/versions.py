"""The registry's versions, where a command can do without them."""

from pipeline.config.schema import Config
from pipeline.core.errors import PipelineError
from pipeline.tracking.outbox import Destination
from pipeline.tracking.registry_reader import Version, read_versions


def versions_of(config: Config) -> tuple[list[Version], str]:
    """The versions of register.name, and why they could not be read; "" if they could."""
    place = Destination.of(config.artifacts, config.tracking)
    try:
        return read_versions(config.register_.name, place), ""
    except PipelineError as error:
        return [], f"without versions: {error}"
