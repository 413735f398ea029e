"""What Hydra shows of the configuration: --cfg, --info."""

import io
import logging
from contextlib import redirect_stderr

from pipeline.core.errors import ConfigError
from pipeline.orchestration.arguments import Command
from pipeline.orchestration.compose import CONFIG, hydra


def show_config(command: Command) -> None:
    """Print the composed configuration, Hydra's own, or both.

    Raises:
        ConfigError: an override is wrong, or there is no such section.
    """
    with hydra(command.overrides) as (composer, overrides):
        try:
            with redirect_stderr(io.StringIO()):  # Hydra's own line about a missing section
                composer.show_cfg(
                    CONFIG, overrides, command.kind, command.package, resolve=command.resolve
                )
        except SystemExit:
            raise ConfigError(f"--package {command.package} is not a section") from None


def show_info(command: Command) -> None:
    """Print how the configuration is composed: defaults tree, search path, plugins.

    Raises:
        ConfigError: an override is wrong.
    """
    # A plugin that NeMo's libraries bring reports each file that it looks for.
    logging.getLogger("multistorageclient").setLevel(logging.WARNING)
    plugins = command.kind in ("all", "plugins")
    with hydra(command.overrides, plugins=plugins) as (composer, overrides):
        composer.show_info(command.kind, CONFIG, overrides)
