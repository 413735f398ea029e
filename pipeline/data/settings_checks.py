"""Whether the settings of the data fit the model. Imports nothing heavy."""

from pipeline.config.schema import Config
from pipeline.core.errors import ConfigError
from pipeline.models.architecture import Shape


def check_prepare(config: Config, shape: Shape) -> None:
    """Refuse rows that the model has no positions for.

    Raises:
        ConfigError: names the setting and the model's positions.
    """
    if config.prepare.max_length > shape.max_positions:
        raise ConfigError(
            f"prepare.max_length={config.prepare.max_length} is over the {shape.max_positions} "
            f"positions of {config.model.path}: set it to {shape.max_positions} at most"
        )
