"""The defaults of conf/ for Python: the same configuration as on the command line, without Hydra.

    config = default_config({"finetune": "sft", "finetune.max_steps": 5})

Hydra composes conf/ for the command line. Here the part of its rules that conf/ uses is followed:
lists of defaults with `_self_`, `optional`, `override /group` and `${group}`, and packages. A test
compares both for every option.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config.model_defaults import fill, register_functions
from pipeline.config.schema import Config, load
from pipeline.core.errors import ConfigError, short
from pipeline.core.paths import CONF

if TYPE_CHECKING:
    from omegaconf import DictConfig

PRIMARY = "config"  # conf/config.yaml
_PACKAGE = re.compile(r"^#\s*@package\s+(\S+)", re.MULTILINE)


def default_config(changes: Mapping[str, Any] | None = None, *, conf: Path = CONF) -> Config:
    """The configuration of conf/ with changes: options by group, values by dotted name.

    Raises:
        ConfigError: an option or a setting does not exist, or a value is missing or out of bounds.
    """
    return load(default_tree(changes, conf=conf))


def default_tree(changes: Mapping[str, Any] | None = None, *, conf: Path = CONF) -> dict[str, Any]:
    """The same as plain dicts and lists, as Hydra composes them: what a fingerprint is made of.

    Raises:
        ConfigError: an option does not exist, or a value is missing.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    register_functions()
    changes = changes or {}
    groups = {name for name in changes if (conf / name).is_dir()}
    tree = _Composition(conf, {name: changes[name] for name in groups}).compose()
    try:
        for name in changes.keys() - groups:
            value = changes[name]
            OmegaConf.update(tree, name, str(value) if isinstance(value, Path) else value)
        for name in _missing(OmegaConf.to_container(tree)):
            raise ConfigError(f"{name} is not set: give a value for {name!r}")
        return fill(OmegaConf.to_container(tree, resolve=True))  # type: ignore[arg-type]
    except OmegaConfBaseException as error:
        raise ConfigError(" ".join(str(error).split())) from error


def _missing(value: Any, name: str = "") -> Iterator[str]:
    """Dotted names of the values that a file leaves to the user, with ???."""
    if isinstance(value, dict):
        for key, inside in value.items():
            yield from _missing(inside, f"{name}.{key}" if name else key)
    elif value == "???":
        yield name


class _Composition:
    """One walk through the files. options: by group; they win over the files'."""

    def __init__(self, conf: Path, options: Mapping[str, str | None]) -> None:
        self._conf = conf
        self._choices: dict[str, str | None] = dict(options)
        # From the last group on, as Hydra does: an experiment overrides options of earlier groups.
        for entry in reversed(self._defaults(PRIMARY)):
            for key, option in entry.items() if isinstance(entry, dict) else ():
                group = key.removeprefix("optional ")
                chosen = self._choices.setdefault(group, option)
                if chosen and "${" not in chosen:
                    self._choose(f"{group}/{chosen}")

    def compose(self) -> "DictConfig":
        from omegaconf import DictConfig, OmegaConf

        tree = OmegaConf.merge(*self._parts(PRIMARY))
        assert isinstance(tree, DictConfig)
        return tree

    def _choose(self, name: str) -> None:
        """Note what `override /group: option` of a file and of those that it includes chooses."""
        entries = self._defaults(name, optional=True)
        for entry in entries:
            for key, option in entry.items() if isinstance(entry, dict) else ():
                if key.startswith("override /"):
                    self._choices.setdefault(key.removeprefix("override /"), option)
        for entry in entries:
            if isinstance(entry, str) and entry != "_self_":
                self._choose(f"{name.rpartition('/')[0]}/{entry}")

    def _parts(self, name: str, *, optional: bool = False) -> Iterator["DictConfig"]:
        """What a file and those that it includes say, in the order in which later ones win."""
        from omegaconf import DictConfig, OmegaConf

        file = self._conf / f"{name}.yaml"
        if not file.is_file():
            if optional:
                return
            group, _, option = name.rpartition("/")
            known = ", ".join(sorted(p.stem for p in (self._conf / group).glob("*.yaml")))
            raise ConfigError(f"{group}={short(option)} does not exist: choose from {known}")
        entries = self._defaults(name)
        for entry in entries if "_self_" in entries else [*entries, "_self_"]:
            if entry == "_self_":
                content = OmegaConf.load(file)
                assert isinstance(content, DictConfig)
                content.pop("defaults", None)
                yield self._in_package(content, name, file)
            elif isinstance(entry, str):
                yield from self._parts(f"{name.rpartition('/')[0]}/{entry}")
            else:
                (key,) = entry
                group = key.removeprefix("optional ")
                if not key.startswith("override ") and self._choices[group]:
                    option = f"{group}/{self._option(group)}"
                    yield from self._parts(option, optional=key != group)

    def _in_package(self, content: "DictConfig", name: str, file: Path) -> "DictConfig":
        from omegaconf import OmegaConf

        found = _PACKAGE.match(file.read_text())
        package = found[1] if found else name.rpartition("/")[0].replace("/", ".")
        if package in ("", "_global_"):
            return content
        tree = OmegaConf.create({})
        OmegaConf.update(tree, package, content)
        return tree

    def _option(self, group: str) -> str:
        """The option of a group, with those of other groups in place of `${group}`."""
        return re.sub(r"\$\{(\w+)\}", lambda m: str(self._choices[m[1]]), str(self._choices[group]))

    def _defaults(self, name: str, *, optional: bool = False) -> list[Any]:
        """The list of defaults of a file."""
        import yaml

        file = self._conf / f"{name}.yaml"
        if optional and not file.is_file():
            return []
        return (yaml.safe_load(file.read_text()) or {}).get("defaults", [])
