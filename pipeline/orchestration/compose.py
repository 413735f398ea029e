"""From the command line to a validated configuration, by Hydra; from params.yaml for DVC."""

import difflib
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pipeline.config.defaults import default_tree
from pipeline.config.model_defaults import fill, register_functions
from pipeline.config.schema import Config, load
from pipeline.core import secrets
from pipeline.core.errors import ConfigError, PipelineError, short
from pipeline.core.paths import PARAMS_FILE, conf_folders, options_of
from pipeline.models.sources.address import is_source
from pipeline.models.sources.fetching import comes_from_elsewhere, local_folder
from pipeline.orchestration import arguments as command_line
from pipeline.orchestration.graph import OUTSIDE, REMOVED, declared_stages, read_yaml

if TYPE_CHECKING:
    from hydra._internal.hydra import Hydra

CONFIG = "config"  # name of the primary configuration
# Stages whose settings are written nowhere.
WRITES_NOTHING = (
    "canary", "clean", "config", "doctor", "graph", "inspect", "lineage", "plan", "profiles",
    "promote", "pull", "rollback", "serve", "synthesize", "verify", "versions",
)  # fmt: skip
# Mappings whose keys are the user's: one that is not there yet is added.
OPEN_SECTIONS = ("engine.arguments", "evaluate.gate", "index.labels", "serve.guardrails_by_model")
# Settings of earlier versions, and what to give instead.
RETIRED = {"register.margin": "evaluate.gate.champion.margin"}
LONGEST_NAME = 200  # characters; Hydra looks for files of the names that it is given
OPTIONAL = ("experiment",)  # groups of which no option need be chosen
OPEN = tuple(f"{section}{end}" for section in OPEN_SECTIONS for end in ".=")
HEADER = (
    "# The composed configuration that DVC runs: written by `python -m pipeline stage=all …` and\n"
    "# `dvc exp run -S …`. Defaults and their explanations are in conf/.\n"
)


def from_command_line(arguments: Sequence[str]) -> tuple[str, dict[str, Any], Config]:
    """The stage, the composed tree and the same validated.

    Raises:
        ConfigError: what is wrong, where, and what is allowed.
    """
    return load_command(command_line.parse(arguments))


def load_command(command: command_line.Command) -> tuple[str, dict[str, Any], Config]:
    """The same, of a command line that was parsed."""
    stage = known_stage(command.stage)
    for override in command.overrides:
        if override.lstrip("+~").startswith(("hydra.", "hydra/")):
            raise ConfigError(
                f"{short(override)} has no effect on one run: Hydra's own settings are for runs "
                "with --multirun"
            )
    if command.params:
        tree = _from_file(command.params, command.overrides)
    else:
        tree = compose(list(command.overrides))
    refuse_secrets(stage, tree)
    return stage, tree, _load_file(tree, command.params) if command.params else load(tree)


def refuse_secrets(stage: str, tree: Mapping[str, Any]) -> None:
    """Raise ConfigError if a setting holds a secret that the stage would write.

    params.yaml, dvc.lock and the manifests hold every setting, and are kept or committed.
    """
    secrets.remember(tree)
    found = next(secrets.plain_secrets(tree), None)
    if found is None or stage in WRITES_NOTHING:
        return
    variable = re.sub(r"\W", "_", found[0].rpartition(".")[2]).upper()
    raise ConfigError(
        f"{found[0]} holds a secret, which stage={stage} would write into files: put it into an "
        f"environment variable, and give '{found[0]}=${{oc.env:{variable}}}' in single quotes"
    )


def known_stage(stage: str | None) -> str:
    """The stage of a command.

    Raises:
        ConfigError: none is given, or there is none of this name.
    """
    if stage is None:
        raise ConfigError("give one stage=<name>: see `python -m pipeline --help`")
    known = stage_names()
    if stage in REMOVED:
        raise ConfigError(f"stage={stage} was removed: {REMOVED[stage]}")
    if stage not in known:
        raise ConfigError(f"stage={short(stage)} does not exist{_nearest(stage, known)}")
    return stage


def stage_names() -> list[str]:
    """Every name that `stage=` takes."""
    return [*dict.fromkeys([*declared_stages(), *OUTSIDE, "all", "config"])]


def compose(overrides: list[str]) -> dict[str, Any]:
    """Compose conf/ with overrides into plain dicts and lists, references resolved."""
    with hydra(overrides) as (_, words):
        return compose_words(words)


def compose_words(words: list[str]) -> dict[str, Any]:
    """The same inside of `hydra()`, of overrides as Hydra reads them."""
    from hydra import compose as hydra_compose
    from omegaconf.errors import OmegaConfBaseException

    try:
        return to_tree(hydra_compose(CONFIG, overrides=words))
    except (PipelineError, OmegaConfBaseException):
        raise
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        # Of Hydra's grammar: a value of another kind than it expects there.
        raise ConfigError(_explain(error, words)) from error


def to_tree(composed: Any) -> dict[str, Any]:
    """A composed configuration as plain dicts and lists, references resolved.

    Raises:
        ConfigError: a setting without a default is not given.
    """
    from omegaconf import OmegaConf

    if missing := sorted(OmegaConf.missing_keys(composed)):
        raise ConfigError(f"{missing[0]} is not set: give {missing[0]}=… on the command line")
    with _kept_references():
        return fill(_local(OmegaConf.to_container(composed, resolve=True)))  # type: ignore[arg-type]


def _local(tree: dict[str, Any]) -> dict[str, Any]:
    """The tree with the folders that the model's and the data's sources stand for, so that whatever
    reads it, DVC too, has folders. Of a model that is new to the project its config.json is
    fetched.

    Raises:
        ConfigError, DataError: a source is written otherwise, or cannot be read.
    """
    artifacts = tree.get("artifacts")
    if not isinstance(artifacts, str):
        return tree
    model, data = tree.get("model"), tree.get("data")
    if isinstance(model, Mapping) and comes_from_elsewhere(model.get("path")):
        tree = {
            **tree, "model": {**model, "path": local_folder(str(model["path"]), Path(artifacts))}
        }  # fmt: skip
    if isinstance(data, Mapping) and is_source(data.get("folder")):
        from pipeline.data.preparation import remote

        folder = remote.local_folder(data, Path(artifacts))
        tree = _with_folder(tree, str(data["folder"]), folder)
    return tree


def _with_folder(tree: dict[str, Any], given: str, folder: str) -> dict[str, Any]:
    """The tree with the data's folder, also where another setting repeats it (synthesize's)."""
    return {
        name: {**section, "folder": folder}
        if isinstance(section, Mapping) and section.get("folder") == given
        else section
        for name, section in tree.items()
    }


@contextmanager
def _kept_references() -> Iterator[None]:
    """Leave `${oc.env:NAME}` as it stands where NAME or the setting is called like a secret, or
    the value looks like one.

    It is resolved where the secret is used (core/secrets.py).
    """
    from omegaconf import Node, OmegaConf
    from omegaconf.resolvers import oc

    def keep_or_read(name: str, *default: str | None, _node_: Node) -> str | None:
        reference = f"${{oc.env:{','.join([name, *map(str, default)])}}}"
        if secrets.is_secret_name(name) or secrets.is_secret_name(_node_._get_full_key(None)):
            return reference
        value = oc.env(name, *default)
        return reference if value and secrets.mask(value) != value else value

    OmegaConf.register_new_resolver("oc.env", keep_or_read, replace=True)
    try:
        yield
    finally:
        OmegaConf.register_new_resolver("oc.env", oc.env, replace=True)


@contextmanager
def hydra(
    overrides: Sequence[str], *, plugins: bool = False
) -> Iterator[tuple["Hydra", list[str]]]:
    """Hydra, ready to compose the package's conf/ and the project's own, and the overrides as it
    reads them. Its errors are raised as ConfigError.

    plugins: find those that installed libraries bring, launchers and sweepers; takes 0.7 s.
    """
    if not plugins and "hydra_plugins" not in sys.modules:  # where Hydra looks for them
        sys.modules["hydra_plugins"] = ModuleType("hydra_plugins")
        sys.modules["hydra_plugins"].__path__ = []
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    register_functions()
    given = (_option(override) for override in overrides)
    words = [_readable(f"++{o}" if o.startswith(OPEN) else o) for o in given if o]
    first, *others = conf_folders()
    for other in others:
        _refuse_same_names(first, other)
        words.append(f"hydra.searchpath=[{quote(f'file://{other}')}]")
    try:
        with initialize_config_dir(str(first), job_name="pipeline", version_base="1.3"):
            composer = GlobalHydra.instance().hydra
            assert composer
            yield composer, words
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_explain(error, overrides)) from error


def _refuse_same_names(package: Path, own: Path) -> None:
    """Raise ConfigError if the project has an option that the package has too: Hydra would take
    the package's and say nothing."""
    for file in sorted(own.rglob("*.yaml")):
        if (package / file.relative_to(own)).is_file():
            raise ConfigError(
                f"{file} has the name of an option that the package brings: give it another name"
            )


def _option(override: str) -> str:
    """An override; "" for one that chooses no option of a group that needs none, as the default.

    Raises:
        ConfigError: a group has no such option.
    """
    group, given, value = override.partition("=")
    if len(group) > LONGEST_NAME:
        raise ConfigError(f"{short(group)} is not a setting{_nearest(group, _settings())}")
    options = options_of(group) if re.fullmatch(r"[a-z_]{1,40}", group) else {}
    if not (given and options):
        return override
    name = value.strip("'\"")
    if name == "null" and group in OPTIONAL:
        return ""
    if name in options:
        return f"{group}={name}"
    several = [part.strip() for part in name.split(",")]
    if len(several) > 1 and value[:1] not in "[{":
        name = next((part for part in several if part not in options), "")
        if not name:
            return override  # runs of a sweep, or Hydra's own refusal
    raise ConfigError(f"{group}={short(name)} does not exist{_nearest(name, list(options))}")


def _readable(override: str) -> str:
    """An override with quotes where Hydra's grammar needs them: é, ~, & and others.

    An override that Hydra can read is not changed. Otherwise the value is read as plain text, and a
    list as texts between commas. ~/ is the home folder: shells do not expand it after `=`.

    Raises:
        ConfigError: quotes do not help; names the override and says how to write it.
    """
    if _parses(override):
        return override
    key, _, value = override.partition("=")
    if not _parses(f"{key}=0"):
        raise ConfigError(f"{short(key)} is not a setting{_nearest(key, _settings())}")
    items = [item.strip() for item in value[1:-1].split(",")]
    quoted = ""
    if value[:1] not in "[{\"'":
        home = os.path.expanduser(value) if value.startswith("~/") else value
        quoted = f"{key}={quote(home)}"
    elif value[:1] + value[-1:] == "[]" and not any(item[:1] in "[{\"'" for item in items):
        quoted = f"{key}=[{','.join(i if _parses(f'k={i}') else quote(i) for i in items)}]"
    if not quoted or not _parses(quoted):
        raise ConfigError(
            f"{short(override)} cannot be read: put quotes around its texts, and others around the "
            f"whole for the shell, as in \"{key}=['a b','ü']\""
        )
    return quoted


def _parses(override: str) -> bool:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        OverridesParser.create().parse_override(override)
    except (HydraException, ValueError, RecursionError):  # a number of 5,000 digits, 500 brackets
        return False
    return True


def quote(text: str) -> str:
    """A text in the quotes of Hydra's grammar."""
    from hydra.core.override_parser.types import Quote, QuotedString

    return QuotedString(text, Quote.single).with_quotes()


def write_params(project: Path, tree: Mapping[str, Any]) -> None:
    """Write the project's params.yaml whole, if it says something else: DVC compares its values."""
    file, text = project / PARAMS_FILE, HEADER + to_yaml(tree)
    if not file.is_file() or file.read_bytes() != text.encode():
        temporary = file.with_suffix(".tmp")
        temporary.write_text(text)
        temporary.replace(file)


def to_yaml(tree: Mapping[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(dict(tree), sort_keys=False)


def _from_file(path: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """A configuration composed before; it takes no further overrides."""
    import yaml

    if overrides:
        raise ConfigError(
            f"{overrides[0]} cannot be set beside --params: edit {path}, or leave --params out"
        )
    try:
        tree = read_yaml(path.read_bytes())
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        why = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"{path} cannot be read ({why}): run `python -m pipeline stage=all`"
        ) from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} holds no settings: run `python -m pipeline stage=all`")
    return fill(_local(tree))


def _load_file(tree: Mapping[str, Any], path: Path) -> Config:
    """Validate a configuration that was composed before, maybe by another version.

    Raises:
        ConfigError: names the first key that this version does not know, or the first that it
            needs; or what load() says.
    """
    from pydantic import ValidationError

    again = "run `python -m pipeline stage=all` with your settings, which writes it anew"
    try:
        return Config.model_validate(tree)
    except KeyError as error:  # a whole section: validators read across sections
        lacks = f"has no {error.args[0]}, which this version needs"
    except ValidationError as error:
        found = {e["type"]: ".".join(map(str, e["loc"])) for e in reversed(error.errors())}
        if "extra_forbidden" in found:
            lacks = f"has {found['extra_forbidden']}, which this version does not know"
        elif "missing" in found:
            lacks = f"has no {found['missing']}, which this version needs"
        else:
            return load(tree)  # a wrong value, which it explains
    raise ConfigError(f"{path.name} was written by another version: it {lacks}: {again}")


def _explain(error: Exception, overrides: Sequence[str]) -> str:
    """Hydra's message in one line, with what is allowed."""
    text = str(error)
    option = re.search(r"Could not find '([\w.-]+)/([^']+)'", text)
    if option and (options := options_of(option[1])):
        group, name = option.groups()
        return f"{group}={short(name)} does not exist{_nearest(name, list(options))}"
    key = re.search(r"Could not override '([\w.@/-]+)'", text)
    if key:
        section = key[1].partition(".")[0]
        if key[1] in RETIRED:
            return f"{key[1]} is now a part of the gate: give {RETIRED[key[1]]}"
        if section in REMOVED:
            return f"{short(key[1])} was removed with stage={section}: {REMOVED[section]}"
        return f"{short(key[1])} is not a setting{_nearest(key[1], _settings())}"
    several = re.search(r"Ambiguous value for argument '([^=]+)=(.*)'", text)
    if several:
        name, value = several.groups()
        value = short(value)
        return f'{name}={value} holds a comma: write "{name}=[{value}]" or "{name}=\'{value}\'"'
    first = " ".join(text.split())
    return f"{short(first, 300)} (given: {' '.join(short(o) for o in overrides[:8])})"


def _settings() -> list[str]:
    """Dotted names of the default configuration, and the groups."""

    def walk(tree: Mapping[str, Any], prefix: str) -> list[str]:
        names = []
        for key, value in tree.items():
            names.append(prefix + key)
            if isinstance(value, Mapping):
                names += walk(value, f"{prefix}{key}.")
        return names

    return walk(default_tree(), "")


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name[:60], known, n=1)
    return f": did you mean {near[0]}?" if near else f": choose from {', '.join(known[:20])}"
