"""Serve an engine or a model's folder without the rest of the pipeline, as the container does.

    python -m pipeline.serving --engine artifacts/build --model bank serve.port=8001
    python -m pipeline.serving --engine /models/llama --model llama engine.name=vllm

Settings are those of `python -m pipeline --help`: serve.key=value, and engine.key=value to serve an
HF folder directly. With SERVE_API_KEY in the environment, or serve.keys_file, clients need a key.
Ctrl-C or SIGTERM stops the server after the requests in progress are finished.
"""

import argparse
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.core.commands import Parser, run_command
from pipeline.core.errors import ConfigError, short, shown

if TYPE_CHECKING:  # takes a second to import; inside main, Ctrl-C prints no traceback
    from pipeline.config.engine import EngineConfig
    from pipeline.config.serve import ServeConfig


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit code (pipeline/core/errors.py)."""
    parser = Parser(
        prog="python -m pipeline.serving",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--engine", type=Path, required=True, help="folder of stage=build, or an HF folder"
    )
    parser.add_argument("--model", required=True, help="the model's name in requests")
    parser.add_argument(
        "--fd", type=int, help="file descriptor of a listening socket, instead of a port"
    )
    parser.add_argument("settings", nargs="*", metavar="section.key=value")
    given = parser.parse_args(arguments)
    return run_command(
        lambda: _serve(given),
        interrupted="interrupted before the server was ready",
        files=(given.engine,),
    )


def _serve(given: argparse.Namespace) -> None:
    from pipeline.engines.opening import describe
    from pipeline.serving.address import listen, warn_if_open
    from pipeline.serving.container.launch import is_built
    from pipeline.serving.server import serve

    settings, engine = read_settings(given.settings, given.engine)
    for name, value in (("version", settings.version), ("follow", settings.follow)):
        if value is not None:
            raise ConfigError(
                f"serve.{name} is for stage=serve: here, give the folder with --engine"
            )
    if not given.model.strip():
        raise ConfigError("--model is empty: give the model's name in requests")
    if engine and is_built(given.engine):
        raise ConfigError(
            f"{given.engine} was built with its own engine settings: leave engine.… out, or build "
            "it again with them"
        )
    if given.fd is not None:
        listening = _inherited_socket(given.fd)
    else:
        listening = listen(settings.host, settings.port)
    with listening:
        warn_if_open(listening, settings.keys_file)
        serve(
            given.engine,
            listening,
            model=given.model,
            settings=settings,
            description=describe(given.engine, engine) if engine else None,
        )


def _inherited_socket(fd: int) -> socket.socket:
    """A socket that the parent process opened.

    Raises:
        ConfigError: the descriptor is not a socket.
    """
    try:
        return socket.socket(fileno=fd)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--fd {fd} is not a socket ({error}): leave it out to open a port"
        ) from error


def read_settings(
    overrides: Sequence[str], folder: Path
) -> "tuple[ServeConfig, EngineConfig | None]":
    """The serve section of conf/ with overrides, and the engine section if an override is in it.

    Does not use Hydra, which would take a second. folder: of the model, which decides the lengths
    that are not given.

    Raises:
        ConfigError: an override is malformed, names no setting, or has a wrong value.
    """
    import yaml
    from pydantic import ValidationError

    from pipeline.config.engine import EngineConfig
    from pipeline.config.model_defaults import fill_engine
    from pipeline.config.section import explain
    from pipeline.config.serve import ServeConfig
    from pipeline.core.paths import CONF

    trees = {
        "serve": yaml.safe_load((CONF / "config.yaml").read_text())["serve"],
        "engine": yaml.safe_load((CONF / "engine/auto.yaml").read_text()),
    }
    given = set()
    for override in overrides:
        name, equals, value = override.partition("=")
        section, *keys = name.split(".")
        if not equals or not keys or section not in trees:
            raise ConfigError(f"{shown(override)} must be serve.key=value or engine.key=value")
        place = trees[section]
        for key in keys[:-1]:
            place = place.get(key)
            if not isinstance(place, dict):
                raise ConfigError(
                    f"{short(name)} is not a setting: see `python -m pipeline --help`"
                )
        try:
            place[keys[-1]] = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError, RecursionError):  # also a date such as 2001-99-99
            raise ConfigError(f"{shown(override)}: the value is not valid YAML: quote it") from None
        given.add(section)
    fill_engine(trees["engine"], str(folder))
    section = "serve"
    try:
        settings = ServeConfig.model_validate(trees[section])
        section = "engine"
        engine = EngineConfig.model_validate(trees[section]) if section in given else None
    except ValidationError as error:
        lines = [explain(e, section) for e in error.errors(include_url=False)]
        raise ConfigError("; ".join(lines)) from None
    return settings, engine


if __name__ == "__main__":
    sys.exit(main())
