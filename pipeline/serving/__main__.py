"""Serve an engine's folder without the rest of the pipeline, as a container or the benchmark does.

python -m pipeline.serving --engine artifacts/build --model bank serve.port=8001
"""

import argparse
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from pipeline.config import ServeConfig
from pipeline.errors import ConfigError, PipelineError
from pipeline.graph import ROOT
from pipeline.serving.address import base_url, listen, warn_if_open
from pipeline.serving.server import serve


def main() -> int:
    """Run the command; the exit code as pipeline.errors draws it."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.serving", description=__doc__)
    parser.add_argument("--engine", type=Path, required=True, help="folder that stage=build made")
    parser.add_argument("--model", required=True, help="name that clients call it by")
    parser.add_argument(
        "--fd", type=int, help="a listening socket of the parent, instead of a port"
    )
    parser.add_argument("settings", nargs="*", help="serve.key=value, over conf/config.yaml's")
    given = parser.parse_args()
    try:
        settings = read_settings(given.settings)
        if given.fd is not None:
            listening = socket.socket(fileno=given.fd)
        else:
            listening = listen(settings.host, settings.port)
        warn_if_open(listening, settings.keys_file)
        print(f"serving {given.model} on {base_url(listening)}", file=sys.stderr)
        serve(given.engine, listening, model=given.model, settings=settings)
    except PipelineError as error:
        print(f"pipeline: {type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def read_settings(overrides: Sequence[str]) -> ServeConfig:
    """The serve section of conf/config.yaml with overrides; Hydra would take a second for it.

    Raises:
        ConfigError: an override is not of the form serve.key=value, or which value is wrong.
    """
    import yaml

    tree = yaml.safe_load((ROOT / "conf/config.yaml").read_text())["serve"]
    for override in overrides:
        name, equals, value = override.partition("=")
        if not equals or not name.startswith("serve."):
            raise ConfigError(f"{override!r} is not of the form serve.key=value")
        tree[name.removeprefix("serve.")] = yaml.safe_load(value)
    try:
        return ServeConfig.model_validate(tree)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ConfigError(f"serve.{first['loc'][0]}={first['input']!r}: {first['msg']}") from None


if __name__ == "__main__":
    sys.exit(main())
