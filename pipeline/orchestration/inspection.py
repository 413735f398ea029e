"""What Hydra shows of the configuration: --cfg, --info."""

import io
import logging
from contextlib import redirect_stderr, redirect_stdout

from pipeline.core.errors import ConfigError
from pipeline.core.secrets import mask
from pipeline.orchestration.arguments import Command
from pipeline.orchestration.compose import CONFIG, hydra


def show_config(command: Command) -> None:
    """Print the composed configuration, Hydra's own, or both.

    Raises:
        ConfigError: an override is wrong, or there is no such section.
    """
    with hydra(command.overrides) as (composer, overrides):
        try:
            # Hydra's own line about a missing section is not shown, and secrets are masked.
            with redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()) as shown:
                composer.show_cfg(
                    CONFIG, overrides, command.kind, command.package, resolve=command.resolve
                )
        except SystemExit:
            raise ConfigError(f"--package {command.package} is not a section") from None
        print(mask(shown.getvalue()), end="")


def show_info(command: Command) -> None:
    """Print how the configuration is composed: defaults tree, search path, plugins.

    Raises:
        ConfigError: an override is wrong.
    """
    # A plugin that NeMo's libraries bring reports each file that it looks for.
    logging.getLogger("multistorageclient").setLevel(logging.WARNING)
    plugins = command.kind in ("all", "plugins")
    with hydra(command.overrides, plugins=plugins) as (composer, overrides):
        with redirect_stdout(io.StringIO()) as shown:
            composer.show_info(command.kind, CONFIG, overrides)
        print(mask(shown.getvalue()), end="")
