"""Write docs/settings.md: every setting with its type, bounds, default and meaning.

    python -m tools.settings_reference            write the page
    python -m tools.settings_reference --check    exit with 1 if the committed page is stale

Types, bounds and meanings are read from the pydantic models of the configuration, defaults from
conf/. A setting without a meaning is an error: describe it in the schema.
"""

import argparse
import re
import sys
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, TypeAdapter
from pydantic.fields import FieldInfo

from pipeline.config.defaults import default_tree
from pipeline.config.schema import Config
from pipeline.orchestration.environment import VARIABLES
from pipeline.orchestration.schema_words import bounds_in_words, type_in_words

ROOT = Path(__file__).resolve().parents[1]
CONF = ROOT / "conf"
PAGE = ROOT / "docs" / "settings.md"
MISSING = "???"  # Hydra's mark for a value that the user must give

HEAD = """\
<!-- Written by `make docs`: change the schema or conf/, not this page. -->

# Settings

Give a setting on the command line as `section.key=value`, and a list as `key=[a,b]`:

```sh
python -m pipeline stage=finetune finetune.max_steps=50 finetune.learning_rate=1e-4
```

Choose an option of a group as `group=option`, for instance `quantize=int4_awq`. Settings on the
command line come before those of the option. The defaults are in [conf/](../conf). Where options
have different defaults, the table names them. `demo` is the bundled model with `model=bundled`: it
has steps, lengths and a gate of its own (conf/demo), which your own model does not inherit. `null`
means that a setting is not set.

`python -m pipeline stage=config …` prints the composed settings and runs nothing. An unknown key, a
wrong type or a value out of bounds ends with [exit code 2](troubleshooting.md#2-configuration)
before anything runs. `null` for a length or a learning rate takes a value that suits the model
([sources](finetuning.md#defaults-by-the-size-of-the-model)).

A setting has an effect, or the command is refused. `stage=finetune quantize=int4_awq` is refused,
since no part of fine-tuning reads it. `stage=build quantize=int4_awq` is refused if the exported
model is of another format: run `stage=all quantize=int4_awq`. Settings of an earlier stage may be
repeated if they are those that its artifact was made with. An `experiment` is meant for several
stages, and each takes its part of it.
"""


@dataclass(frozen=True)
class Option:
    """One file of a group, such as conf/quantize/fp8.yaml. values: with those of its own base."""

    name: str
    summary: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Setting:
    """A leaf of the schema. defaults: by option; one entry, named "", outside the groups."""

    name: str
    type: str
    bounds: str
    meaning: str
    defaults: Mapping[str, str]


@dataclass(frozen=True)
class Part:
    """A heading of the page and the settings below it. options: those that have these settings."""

    group: str
    title: str
    summary: str
    options: tuple[Option, ...]
    settings: tuple[Setting, ...]


@dataclass(frozen=True)
class Defaults:
    """What conf/ says.

    chosen: the default option of each group. groups: all options of each. demo: what a command
    without arguments runs with, where the bundled model has values of its own.
    """

    values: Mapping[str, Any]
    demo: Mapping[str, Any]
    chosen: Mapping[str, str]
    groups: Mapping[str, tuple[Option, ...]]


def read_defaults(folder: Path) -> Defaults:
    """The default values and the options of a folder that Hydra composes."""
    root = yaml.safe_load((folder / "config.yaml").read_text())
    entries = [e for e in root.pop("defaults") if isinstance(e, dict)]
    chosen = {group: option for entry in entries for group, option in entry.items()}
    groups = {
        place.name: tuple(_option(file) for file in sorted(place.glob("*.yaml")))
        for place in sorted(folder.iterdir())
        if place.is_dir()
    }
    return Defaults(root, default_tree(conf=folder), chosen, groups)


def _option(file: Path) -> Option:
    summary = re.findall(r"^# (?!@package)(.*)", file.read_text(), re.MULTILINE)
    return Option(file.stem, summary[0] if summary else "", _values(file))


def _values(file: Path) -> dict[str, Any]:
    """The values of an option, merged over those of the options that it is based on."""
    own = yaml.safe_load(file.read_text()) or {}
    values: dict[str, Any] = {}
    for base in own.pop("defaults", []):
        if isinstance(base, str) and base != "_self_":
            values |= _values(file.with_name(f"{base}.yaml"))
    return _merged(values, own)


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        nested = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = _merged(base[key], value) if nested else value
    return merged


def read_parts(model: type[BaseModel], defaults: Defaults) -> list[Part]:
    """The page's parts: first the settings of no section, then one part a section or variant."""
    general, parts = [], []
    for key, field in _fields(model):
        variants = _models(field.annotation)
        if not variants:
            general.append(_setting(key, field, {"": _look_up(defaults.values, [key])}))
        for variant in variants:
            parts.append(_part(key, variant, defaults, several=len(variants) > 1))
    return [Part("", "General", "", (), tuple(general)), *parts]


def _part(key: str, model: type[BaseModel], defaults: Defaults, *, several: bool) -> Part:
    options = defaults.groups.get(key, ())
    title = f"`{key}`"
    if several:  # variants of one group, told apart by their names
        names = {name for _, field in _fields(model) for name in _literals(field.annotation)}
        options = tuple(option for option in options if option.name in names)
        title = ", ".join(f"`{key}={option.name}`" for option in options)
    # The default option first: its values are the defaults.
    first = defaults.chosen.get(key)
    ordered = sorted(options, key=lambda option: option.name != first)
    trees = {option.name: option.values for option in ordered}
    trees = trees or {"": defaults.values.get(key, {})}
    if first in trees or not options:
        trees["demo"] = defaults.demo.get(key, {})
    settings = _settings(key, model, trees, ())
    summary = " ".join((model.__doc__ or "").split())
    return Part(key, title, summary, options, tuple(settings))


def _settings(
    prefix: str, model: type[BaseModel], trees: Mapping[str, Any], path: tuple[str, ...]
) -> Iterator[Setting]:
    """Every leaf below a model, depth first. trees: the values of each option of the section."""
    for key, field in _fields(model):
        here = (*path, key)
        nested = _models(field.annotation)
        for inner in nested:
            yield from _settings(prefix, inner, trees, here)
        if not nested:
            found = {option: _look_up(tree, here) for option, tree in trees.items()}
            yield _setting(".".join((prefix, *here)), field, found)


def _setting(name: str, field: FieldInfo, found: Mapping[str, Any]) -> Setting:
    annotated: Any = Annotated[field.annotation, field]
    schema = TypeAdapter(annotated).json_schema()
    meaning = field.description or ""
    defaults = {option: _shown(value) for option, value in found.items()}
    kind = type_in_words(schema, quote="`")
    return Setting(name, kind, bounds_in_words(schema), meaning, defaults)


def _fields(model: type[BaseModel]) -> list[tuple[str, FieldInfo]]:
    """A model's fields by the names that users type."""
    return [(field.alias or name, field) for name, field in model.model_fields.items()]


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The sections that a field may hold: none for a plain value, several for a union."""
    if get_origin(annotation) is Annotated:
        return _models(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [model for member in get_args(annotation) for model in _models(member)]
    return (
        [annotation] if isinstance(annotation, type) and issubclass(annotation, BaseModel) else []
    )


def _literals(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def _look_up(tree: Any, path: "tuple[str, ...] | list[str]") -> Any:
    """The value at a path; MISSING where an option leaves it to the user."""
    for key in path:
        if not isinstance(tree, Mapping) or key not in tree:
            return MISSING
        tree = tree[key]
    return tree


def _shown(value: Any) -> str:
    """A default as a user would type it."""
    if value == MISSING:
        return "required"
    if value is None:
        return "`null`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, list):
        return f"`[{', '.join(str(v) for v in value)}]`"
    if isinstance(value, dict):
        return f"`{{{', '.join(f'{k}: {v}' for k, v in value.items())}}}`"
    return f"`{value}`" if value != "" else "empty"


def render(parts: list[Part], defaults: Defaults) -> str:
    """The page in Markdown."""
    lines = [HEAD]
    for part in parts:
        lines += [f"## {part.title}", ""]
        if part.summary:
            lines += [part.summary, ""]
        if len(part.options) > 1:
            lines += _options(part.group, part.options, defaults)
        lines += ["| setting | type | bounds | default | meaning |", "|---|---|---|---|---|"]
        lines += [_row(setting) for setting in part.settings]
        lines.append("")
    lines += ["## `experiment`", "", "Settings for a model and its hardware, in one word.", ""]
    lines += _options("experiment", defaults.groups.get("experiment", ()), defaults)
    lines += _variables()
    return "\n".join(lines).rstrip() + "\n"


def _variables() -> list[str]:
    """The environment variables, in a table."""
    lines = ["## Environment variables", "", "| variable | | meaning |", "|---|---|---|"]
    for variable in VARIABLES:
        names = ", ".join(f"`{name}`" for name in variable.name.split(", "))
        lines.append(f"| {names} | {variable.state} | {_cell(variable.text)} |")
    return lines


def _options(group: str, options: tuple[Option, ...], defaults: Defaults) -> list[str]:
    chosen = defaults.chosen.get(group)
    lines = ["| option | meaning |", "|---|---|"]
    for option in options:
        mark = " (default)" if option.name == chosen else ""
        lines.append(f"| `{group}={option.name}`{mark} | {_cell(option.summary)} |")
    return [*lines, ""]


def _row(setting: Setting) -> str:
    cells = [f"`{setting.name}`", setting.type, setting.bounds, _default(setting), setting.meaning]
    return "| " + " | ".join(_cell(cell) for cell in cells) + " |"


def _default(setting: Setting) -> str:
    """The default, then the options that have another."""
    (_, default), *others = setting.defaults.items()
    names: dict[str, list[str]] = {}
    for option, value in others:
        # An option's own name says nothing, and a reference is the same in the demo.
        if value not in (default, f"`{option}`") and not ("${" in default and option == "demo"):
            names.setdefault(value, []).append(option)
    different = [f"{', '.join(options)}: {value}" for value, options in names.items()]
    return "; ".join([default, *different])


def _cell(text: str) -> str:
    return re.sub(r"(?<!\\)\|", r"\\|", text)


def undescribed(parts: list[Part]) -> list[str]:
    """Names of the settings without a meaning."""
    return [setting.name for part in parts for setting in part.settings if not setting.meaning]


def page() -> str:
    """The page for the schema and defaults of this checkout.

    Raises:
        SystemExit: a setting has no meaning.
    """
    defaults = read_defaults(CONF)
    parts = read_parts(Config, defaults)
    if lacking := undescribed(parts):
        sys.exit(f"{PAGE.name}: no description in the schema for {', '.join(lacking)}")
    return render(parts, defaults)


def main() -> int:
    """Write the page, or with --check compare it; the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    check = parser.parse_args().check
    text = page()
    if check and text != PAGE.read_text():
        print(f"{PAGE.relative_to(ROOT)} is stale: run `make docs`", file=sys.stderr)
        return 1
    if not check:
        PAGE.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
