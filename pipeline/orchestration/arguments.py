"""The command line, taken apart: what is asked for, and the overrides of settings.

The options are Hydra's own, with Hydra's meanings. Imports nothing heavy: --help answers at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.core.errors import ConfigError, short, shown

Print = Literal["help", "version", "config", "info"]
CONFIGS = ("job", "hydra", "all")
INFOS = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")


@dataclass(frozen=True)
class Command:
    """A command line.

    stage: the value of stage=; None where none is given.
    overrides: settings and options of groups, as `finetune.max_steps=50` or `quantize=int4_awq`.
    multirun: values that a comma separates are runs of their own.
    params: a composed configuration to read, in place of composing one.
    prints: what is asked for in place of a run; kind: of configuration or information.
    package, resolve: which part of the configuration to print, and whether to fill in references.
    """

    stage: str | None = None
    overrides: tuple[str, ...] = ()
    multirun: bool = False
    params: Path | None = None
    prints: Print | None = None
    kind: str = ""
    package: str | None = None
    resolve: bool = False


def parse(arguments: Sequence[str]) -> Command:
    """
    Raises:
        ConfigError: an option is not known or lacks its value, or a word is not key=value.
    """
    rest, stages, overrides = list(arguments), [], []
    multirun = resolve = False
    params: Path | None = None
    prints: Print | None = None
    kind, package = "", None
    while rest:
        word = rest.pop(0)
        if not word.isprintable():
            raise ConfigError(
                f"{shown(word)} holds a control character, a line break or a byte that is not "
                "UTF-8: remove it"
            )
        if word in ("-h", "--help"):
            prints = "help"
        elif word == "--version":
            prints = "version"
        elif word in ("-m", "--multirun"):
            multirun = True
        elif word == "--resolve":
            resolve = True
        elif word in ("-c", "--cfg"):
            prints, kind = "config", _choice(word, rest, CONFIGS)
        elif word in ("-i", "--info"):
            prints = "info"
            kind = rest.pop(0) if rest and "=" not in rest[0] and rest[0][:1] != "-" else "all"
            _choice(word, [kind], INFOS)
        elif word in ("-p", "--package"):
            package = _value(word, rest, "a section, such as finetune")
        elif word == "--params":
            params = Path(_value(word, rest, "the name of a file, such as params.yaml")).absolute()
        elif word.startswith("-") or "=" not in word:
            raise ConfigError(
                f"{shown(word)} is not of the form key=value: see `python -m pipeline --help`"
            )
        elif word.startswith("stage="):
            stages.append(word.removeprefix("stage="))
        else:
            overrides.append(word)
    if len(stages) > 1:
        raise ConfigError("give one stage=<name>: see `python -m pipeline --help`")
    stage = stages[0] if stages else None
    return Command(stage, tuple(overrides), multirun, params, prints, kind, package, resolve)


def _value(option: str, rest: list[str], what: str) -> str:
    if not rest:
        raise ConfigError(f"{option} needs {what}")
    return rest.pop(0)


def _choice(option: str, rest: list[str], allowed: Sequence[str]) -> str:
    value = _value(option, rest, f"one of {', '.join(allowed)}")
    if value not in allowed:
        raise ConfigError(
            f"{option} {short(value)} does not exist: choose from {', '.join(allowed)}"
        )
    return value
