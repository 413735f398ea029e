"""From the command line to a validated configuration, by Hydra; the same as params.yaml for DVC."""

import difflib
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from pipeline.config.schema import Config, load
from pipeline.core.errors import ConfigError
from pipeline.core.paths import CONF, ROOT
from pipeline.orchestration.graph import OUTSIDE, read_graph

PARAMS = ROOT / "params.yaml"
# Mappings whose keys are the user's: one that is not there yet is added.
OPEN = ("engine.arguments.", "evaluate.gate.max_drop.")
HEADER = (
    "# The composed configuration that DVC runs: written by `python -m pipeline stage=all …` and\n"
    "# `dvc exp run -S …`. Defaults and their explanations are in conf/.\n"
)


def from_command_line(arguments: list[str]) -> tuple[str, dict[str, Any], Config]:
    """The stage, the composed tree and the same validated.

    Raises:
        ConfigError: what is wrong, where, and what is allowed.
    """
    arguments = list(arguments)
    params = None
    if "--params" in arguments:
        at = arguments.index("--params")
        if at + 1 >= len(arguments):
            raise ConfigError("--params needs the name of a file, such as params.yaml")
        params = Path(arguments[at + 1])
        del arguments[at : at + 2]
    unknown = [a for a in arguments if a.startswith("-") or "=" not in a]
    if unknown:
        raise ConfigError(
            f"{unknown[0]!r} is not of the form key=value: see `python -m pipeline --help`"
        )
    stages = [a.removeprefix("stage=") for a in arguments if a.startswith("stage=")]
    overrides = [a for a in arguments if not a.startswith("stage=")]
    if len(stages) != 1:
        raise ConfigError("give one stage=<name>: see `python -m pipeline --help`")
    tree = _from_file(params, overrides) if params else compose(overrides)
    known = stage_names(tree)
    if stages[0] not in known:
        raise ConfigError(f"stage={stages[0]} does not exist{_nearest(stages[0], known)}")
    return stages[0], tree, load(tree)


def stage_names(tree: Mapping[str, Any]) -> list[str]:
    """Every name that `stage=` takes."""
    return [*dict.fromkeys([*read_graph(tree), *OUTSIDE, "all", "config"])]


def compose(overrides: list[str]) -> dict[str, Any]:
    """Compose conf/ with overrides into plain dicts and lists, references resolved."""
    # Hydra would import every plugin that any installed library brings, 0.7 s for none that we use.
    sys.modules.setdefault("hydra_plugins", ModuleType("hydra_plugins")).__path__ = []
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    overrides = [_readable(f"++{o}" if o.startswith(OPEN) else o) for o in overrides]
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            composed = hydra_compose("config", overrides=overrides)
        missing = sorted(OmegaConf.missing_keys(composed))
        if missing:
            raise ConfigError(f"{missing[0]} is not set: give {missing[0]}=… on the command line")
        return OmegaConf.to_container(composed, resolve=True)  # type: ignore[return-value]
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_explain(error, overrides)) from error


def _readable(override: str) -> str:
    """An override with quotes where Hydra's grammar needs them: é, ~, & and others.

    One that Hydra can read stays as it is. A value that it cannot is taken as the text that it is,
    and a list as texts between commas; ~/ is the home folder, which shells leave to us here.

    Raises:
        ConfigError: quotes do not help; says which override, and how to write it.
    """
    if _parses(override):
        return override
    key, _, value = override.partition("=")
    if not _parses(f"{key}=0"):
        raise ConfigError(f"{key} is not a setting{_nearest(key, _settings())}")
    items = [item.strip() for item in value[1:-1].split(",")]
    quoted = ""
    if value[:1] not in "[{\"'":
        home = os.path.expanduser(value) if value.startswith("~/") else value
        quoted = f"{key}={_quoted(home)}"
    elif value[:1] + value[-1:] == "[]" and not any(item[:1] in "[{\"'" for item in items):
        quoted = f"{key}=[{','.join(i if _parses(f'k={i}') else _quoted(i) for i in items)}]"
    if not quoted or not _parses(quoted):
        raise ConfigError(
            f"{override} cannot be read: put quotes around its texts, and others around the whole "
            f"for the shell, as in \"{key}=['a b','ü']\""
        )
    return quoted


def _parses(override: str) -> bool:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        OverridesParser.create().parse_override(override)
    except HydraException:
        return False
    return True


def _quoted(text: str) -> str:
    from hydra.core.override_parser.types import Quote, QuotedString

    return QuotedString(text, Quote.single).with_quotes()


def write_params(tree: Mapping[str, Any]) -> None:
    """Write params.yaml whole, if it says something else: DVC compares its values."""
    text = HEADER + to_yaml(tree)
    if not PARAMS.is_file() or PARAMS.read_text() != text:
        temporary = PARAMS.with_suffix(".tmp")
        temporary.write_text(text)
        temporary.replace(PARAMS)


def to_yaml(tree: Mapping[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(dict(tree), sort_keys=False)


def _from_file(path: Path, overrides: list[str]) -> dict[str, Any]:
    """A configuration composed before; it takes no further overrides."""
    import yaml

    if overrides:
        raise ConfigError(
            f"{overrides[0]} cannot be set beside --params: edit {path}, or leave --params out"
        )
    try:
        return yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(
            f"{path} cannot be read ({error}): run `python -m pipeline stage=all`"
        ) from error


def _explain(error: Exception, overrides: list[str]) -> str:
    """Hydra's message in one line, with what is allowed."""
    text = str(error)
    option = re.search(r"Could not find '([\w.-]+)/([^']+)'", text)
    if option and (CONF / option[1]).is_dir():
        group, name = option.groups()
        options = sorted(p.stem for p in (CONF / group).glob("*.yaml"))
        return f"{group}={name} does not exist{_nearest(name, options)}"
    key = re.search(r"Could not override '([\w.@/-]+)'", text)
    if key:
        return f"{key[1]} is not a setting{_nearest(key[1], _settings())}"
    several = re.search(r"Ambiguous value for argument '([^=]+)=(.*)'", text)
    if several:
        name, value = several.groups()
        return f'{name}={value} holds a comma: write "{name}=[{value}]" or "{name}=\'{value}\'"'
    first = " ".join(text.split())
    return f"{first} (given: {' '.join(overrides)})"


def _settings() -> list[str]:
    """Dotted names of the default configuration, and the groups."""

    def walk(tree: Mapping[str, Any], prefix: str) -> list[str]:
        names = []
        for key, value in tree.items():
            names.append(prefix + key)
            if isinstance(value, Mapping):
                names += walk(value, f"{prefix}{key}.")
        return names

    return walk(compose([]), "")


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f": did you mean {near[0]}?" if near else f": choose from {', '.join(known[:40])}"
