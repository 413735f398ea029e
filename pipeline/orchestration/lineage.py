"""A setting has an effect or is refused, on the command line of a single stage too.

A stage reads settings of its own (effects.py) and artifacts that earlier stages made with theirs. A
setting that a command gives is one that the stage reads; or one that an earlier stage read, and
then it must be what that stage's artifact records; or it is refused. Otherwise a command would be
answered with "up to date", and would change nothing.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.config.schema import Config
from pipeline.core import artifact as artifacts
from pipeline.core.artifact import Manifest
from pipeline.core.errors import ArtifactError, ConfigError, short, shown
from pipeline.core.paths import options_of
from pipeline.orchestration import compose
from pipeline.orchestration.effects import (
    GRAPH,
    LOCAL_LAUNCHER,
    WHOLE,
    check_conditions,
    is_below,
    is_read,
    readers,
)
from pipeline.orchestration.environment import check_environment
from pipeline.orchestration.graph import read_graph

PATHS = ("model.path", "data.folder")  # compared as places: two names may mean one folder
# Stages outside the graph, and the artifacts that they read.
OUTSIDE_INPUTS = {"serve": ("build",), "profiles": ("merge", "export")}
ABSENT = "nothing"
# Words that hold for a stage that does not read them, too.
TRUE_OF_ALL = (f"launcher={LOCAL_LAUNCHER}", "tracking.enabled=false")


@dataclass(frozen=True)
class Given:
    """What a command line gives.

    words: dotted keys that it gives one by one or by an option of a group, with the word.
    single: those of the first kind. options: the keys that a word of the second kind gives, some of
    which another word may give again. shared: keys of options that are meant for several stages,
    such as experiments: they need no effect on each.
    """

    words: Mapping[str, str] = field(default_factory=dict)
    single: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Sequence[str]] = field(default_factory=dict)
    shared: Mapping[str, str] = field(default_factory=dict)


def check(stage: str, tree: Mapping[str, Any], config: Config, overrides: Sequence[str]) -> None:
    """Refuse a command line with a setting that would have no effect.

    tree: the composed configuration; config: the same, validated. overrides: of the command line.

    Raises:
        ConfigError: names the setting, what reads it, and what to run. ArtifactError: two inputs
            were made from different models.
    """
    given = given_by(tree, overrides)
    check_conditions(stage, config, given.single)
    if is_read(stage, "tracking"):
        check_environment(config)
    made = ancestors(stage, tree, config)
    # An option has an effect if one of its keys has; the others come with it.
    read = {w for w, keys in given.options.items() if any(is_read(stage, key) for key in keys)}
    beside = {k: w for k, w in given.words.items() if w in read and k not in given.single}
    for key, word in sorted(given.words.items(), key=lambda item: item[0] not in PATHS):
        if key not in beside:
            _check_key(stage, key, word, tree, made, config)
    for key, word in [*given.shared.items(), *beside.items()]:
        if not is_read(stage, key) and (found := _recorded(key, made)):
            _compare(stage, key, word, tree, found)
    check_made(stage, tree, config, made)


def check_made(
    stage: str,
    tree: Mapping[str, Any],
    config: Config,
    made: Mapping[str, Manifest] | None = None,
) -> None:
    """Refuse to record a setting, given or not, that an earlier stage decided otherwise.

    A stage's manifest holds whole sections; what it does not read itself must be as in its inputs,
    or the manifest would name a model that it was not made from.

    Raises:
        ConfigError: a setting differs. ArtifactError: two inputs were made from different models.
    """
    made = ancestors(stage, tree, config) if made is None else made
    models = {
        name: str(_look_up(manifest.config, "model.path"))
        for name, manifest in made.items()
        if name in ("prepare", "import")
    }
    contents = {_content_of(made[name], path) for name, path in models.items()}
    same = len(contents) == 1 and contents != {None}
    if len({os.path.realpath(path) for path in models.values()}) > 1 and not same:
        raise ArtifactError(
            f"{config.artifacts}/prepare was made for model.path={short(models['prepare'])} and "
            f"{config.artifacts}/import from model.path={short(models['import'])}: run "
            "`python -m pipeline stage=all` with the settings of one model"
        )
    if stage not in GRAPH:
        return
    if models and not is_read(stage, "model.path"):
        _check_model(stage, tree, next(made[n] for n in ("import", "prepare") if n in made))
    for section in read_graph(tree)[stage].params:
        for key in _leaves(_look_up(tree, section), section):
            if not is_read(stage, key) and (found := _recorded(key, made)):
                _compare(stage, key, "", tree, found)


def _check_model(stage: str, tree: Mapping[str, Any], source: Manifest) -> None:
    """Refuse defaults of another model than the one that the inputs were made for: conf/demo, sizes
    of config.json."""
    was, now = (_look_up(t, "model.path") for t in (source.config, tree))
    if was is _NONE or _same("model.path", now, was):
        return
    name = _look_up(source.config, "model.name")
    raise ConfigError(
        f"stage={stage} reads what stage={source.stage} made for model.path={short(str(was))}, and "
        f"this command has the defaults of model.path={short(str(now))}: give model=local "
        f"model.name={short(str(name))} model.path={short(str(was))} here, too, or run stage=all"
    )


def _check_key(
    stage: str,
    key: str,
    word: str,
    tree: Mapping[str, Any],
    made: Mapping[str, Manifest],
    config: Config,
) -> None:
    if is_read(stage, key) or word in TRUE_OF_ALL:
        return
    if found := _recorded(key, made):
        _compare(stage, key, word, tree, found)
        return
    if stage == "serve" and config.serve.version is not None and key.startswith("engine."):
        raise ConfigError(
            f"{word} has no effect on serve.version={config.serve.version}, whose engine is built: "
            "leave it out, or build and register another"
        )
    if _waits_for_inputs(stage, tree, config):
        return  # which the stage itself will say
    if is_below(key, "launcher"):
        raise ConfigError(
            f"{word} has no effect: stage={stage} always runs on this machine; leave it out"
        )
    who = [name for name in readers(key) if name not in ("config", *WHOLE)] or ["all"]
    raise ConfigError(
        f"{word} has no effect on stage={stage}: stage={', '.join(who[:4])} reads it; leave it "
        "out, or run stage=all with it"
    )


def _waits_for_inputs(stage: str, tree: Mapping[str, Any], config: Config) -> bool:
    inputs = read_graph(tree)[stage].inputs if stage in GRAPH else ()
    return any(not (config.artifacts / name).is_dir() for name in inputs)


def _recorded(key: str, made: Mapping[str, Manifest]) -> dict[str, Any]:
    """What earlier stages record of a key, by stage: of those that read it, if any does."""
    found = {}
    for name, manifest in made.items():
        value = _look_up(manifest.config, key)
        section = next((s for s in compose.OPEN_SECTIONS if key.startswith(f"{s}.")), "")
        if value is not _NONE or (section and _look_up(manifest.config, section) is not _NONE):
            found[name] = value
    deciding = {name: value for name, value in found.items() if is_read(name, key)}
    return deciding or found


def _compare(
    stage: str, key: str, word: str, tree: Mapping[str, Any], recorded: Mapping[str, Any]
) -> None:
    value = _look_up(tree, key)
    for name, was in recorded.items():
        if _same(key, value, was) or _same_content(key, value, was, name, tree):
            continue
        now = "this command" if word else "this command, which leaves it out,"
        by = f" by {word}" if word and not word.split("=")[0].endswith(key) else ""
        instead = f"leave {word.partition('=')[0]} out" if word else f"give {key}={_typed(was)}"
        raise ConfigError(
            f"stage={stage} reads what stage={name} made with {key}={_typed(was)}, and {now} says "
            f"{key}={_typed(value)}{by}: {instead}, or run stage=all (or stage={name} and those "
            "after it) with your settings"
        )


def _same(key: str, value: Any, was: Any) -> bool:
    if value is _NONE or was is _NONE:
        return value is was
    if key in PATHS:
        return os.path.realpath(str(value)) == os.path.realpath(str(was))
    return json.dumps(value, sort_keys=True) == json.dumps(was, sort_keys=True)


def _content_of(manifest: Manifest, path: str) -> str | None:
    """The digest that a manifest records of a file or folder outside the artifacts."""
    files = manifest.environment.get("files")
    digest = files.get(path) if isinstance(files, Mapping) else None
    return digest if isinstance(digest, str) else None


def _same_content(key: str, value: Any, was: Any, stage: str, tree: Mapping[str, Any]) -> bool:
    """Whether a model's folder was moved or copied: the stage read what is at the other place."""
    from pipeline.orchestration.runner import content_digest

    if key != "model.path" or not all(isinstance(v, str) for v in (value, was)):
        return False
    artifacts_folder, place = Path(str(tree["artifacts"])), Path(value)
    manifest = _manifest(artifacts_folder, stage, "", "")
    before = manifest and _content_of(manifest, was)
    return bool(before) and place.is_dir() and content_digest(place, artifacts_folder) == before


def _typed(value: Any) -> str:
    """A value as a user would type it."""
    if value is _NONE:
        return ABSENT
    return short(value) if isinstance(value, str) else shown(value)


_NONE = object()


def _look_up(tree: Any, key: str) -> Any:
    """The value of a dotted key, in a tree or in what a manifest records; _NONE without one.

    A manifest has sections and dotted names of settings beside one another.
    """
    if isinstance(tree, Mapping):
        parts = key.split(".")
        for end in range(len(parts), 0, -1):
            name = ".".join(parts[:end])
            if name in tree:
                rest = ".".join(parts[end:])
                return _look_up(tree[name], rest) if rest else tree[name]
    return _NONE


def _leaves(value: Any, name: str) -> Iterator[str]:
    if isinstance(value, Mapping) and value and name not in compose.OPEN_SECTIONS:
        for key, inside in value.items():
            yield from _leaves(inside, f"{name}.{key}")
    else:
        yield name


def ancestors(stage: str, tree: Mapping[str, Any], config: Config) -> dict[str, Manifest]:
    """The manifests of everything that a stage's inputs were made from, nearest first.

    Each by the seal, or the digest, that the later one records: what lies in a stage's folder now
    may have been made afterwards, with other settings.
    """
    folder = config.artifacts
    names: Sequence[str] = ()
    if stage in GRAPH:
        names = read_graph(tree)[stage].inputs
    elif not (stage == "serve" and config.serve.version is not None):
        names = OUTSIDE_INPUTS.get(stage, ())
    found: dict[str, Manifest] = {}
    waiting = [(name, "", "") for name in names]
    while waiting:
        name, seal, digest = waiting.pop(0)
        if name in found:
            continue
        manifest = _manifest(folder, name, seal, digest)
        if manifest is None:
            continue
        found[name] = manifest
        for source, source_digest in manifest.inputs.items():
            waiting.append((source, manifest.input_seals.get(source, ""), source_digest))
    return found


def _manifest(folder: Path, stage: str, seal: str, digest: str) -> Manifest | None:
    """The manifest of a stage's artifact; of the one with the seal or digest, if one is given."""
    try:
        here = artifacts.read_manifest(folder / stage, "")
    except ArtifactError:
        here = None
    if here and (not digest or here.seal == seal or here.digest == digest):
        return here
    if not digest:
        return None
    kept = [manifest for _, manifest in artifacts.kept(folder, stage)]
    exact = (manifest for manifest in kept if manifest.seal == seal)
    return next(exact, None) or next((m for m in kept if m.digest == digest), None)


def given_by(tree: Mapping[str, Any], overrides: Sequence[str]) -> Given:
    """The keys that the words of a command line give."""
    words: dict[str, str] = {}
    single: dict[str, str] = {}
    of_options: dict[str, list[str]] = {}
    shared: dict[str, str] = {}
    for override in overrides:
        name, _, value = override.partition("=")
        key = name.lstrip("+~").partition("@")[0]
        if key.startswith("hydra"):
            continue
        word = f"{short(key)}={short(value)}"
        options = options_of(key) if "." not in key else {}
        if options and key in tree:
            of_options[word] = _own_keys(key, options.get(value))
            words |= dict.fromkeys(of_options[word], word)
        elif options:
            without = [o for o in overrides if o != override]
            shared |= dict.fromkeys(_changed(tree, without), word)
        else:
            for leaf in _leaves(_parsed(value), key):
                words[leaf] = single[leaf] = word
    return Given(words, single, of_options, shared)


def _own_keys(group: str, option: Path | None) -> list[str]:
    """The keys that an option's own file sets, without those of the option that it is based on."""
    import yaml

    content = yaml.safe_load(option.read_text()) if option else {}
    own = {name: value for name, value in (content or {}).items() if name != "defaults"}
    return list(_leaves(own, group)) if own else []


def _changed(tree: Mapping[str, Any], without: Sequence[str]) -> list[str]:
    """Keys that have another value in a tree than without one of its words."""
    try:
        other = compose.compose(list(without))
    except ConfigError:  # the word gives what must be given
        return []
    leaves = [leaf for name in tree for leaf in _leaves(tree[name], name)]
    return [leaf for leaf in leaves if _look_up(other, leaf) != _look_up(tree, leaf)]


def _parsed(value: str) -> Any:
    """A value that is a mapping, as Hydra reads it; anything else is a leaf."""
    if not value.startswith("{"):
        return None
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_override(f"key={value}").value()
    except HydraException:
        return None
