"""The text of `stage=<name> --help`: what a stage does, reads and makes, and its settings."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.config.schema import Config
from pipeline.orchestration import compose
from pipeline.orchestration.effects import READERS, is_below
from pipeline.orchestration.graph import read_graph
from pipeline.orchestration.help import NO_FILE, module_docstring
from pipeline.orchestration.schema_words import bounds_in_words, type_in_words

# Settings that most stages read.
SHARED = ("artifacts", "verify", "launcher", "tracking", "tracking.uri", "tracking.experiment")


def stage_help(name: str, overrides: Sequence[str] = ()) -> str:
    """The whole text. Settings have the values that conf/ and the overrides give.

    Raises:
        ConfigError: there is no such stage, or an override is wrong.
    """
    compose.known_stage(name)
    if name in NO_FILE:
        return f"stage={name}\n\n{NO_FILE[name]}\n"
    tree = compose.compose(list(overrides))
    node = read_graph(tree).get(name)
    parts = [f"stage={name}", "", module_docstring(name), ""]
    if node:
        reads = [f"artifacts/{stage}" for stage in node.inputs] + [str(f) for f in node.files]
        parts += [f"Reads: {', '.join(reads)}", f"Makes: artifacts/{name}", ""]
    sections = node.params if node else _read_outside(name, tree)
    schema = Config.model_json_schema()
    lines = [line for section in sections for line in _section(section, tree, schema)]
    if lines:
        parts += ["Settings, with their present values", *lines, ""]
    return "\n".join(parts)


def _read_outside(stage: str, tree: Mapping[str, Any]) -> list[str]:
    """Sections and settings that a stage outside the graph reads, its own ones first."""
    read = [name for name, stages in READERS.items() if stage in stages and name not in SHARED]
    read = [*[stage] * (stage in tree), *read]
    return [name for i, name in enumerate(read) if not any(is_below(name, b) for b in read[:i])]


def _section(name: str, tree: Mapping[str, Any], schema: Mapping[str, Any]) -> Iterator[str]:
    """Lines of a section of the configuration, or of one setting. name: dotted."""
    value: Any = tree
    part, definitions = schema, schema["$defs"]
    for key in name.split("."):
        part = _resolved(part, value, definitions)["properties"][key]
        value = value[key]
    yield from _settings(name, value, part, definitions)


def _settings(
    name: str, value: Any, schema: Mapping[str, Any], definitions: Mapping[str, Any]
) -> Iterator[str]:
    resolved = _resolved(schema, value, definitions)
    if "properties" in resolved:
        for key, part in resolved["properties"].items():
            yield from _settings(f"{name}.{key}", value[key], part, definitions)
        return
    meaning = schema.get("description") or resolved.get("description")
    shown = value if isinstance(value, str) else json.dumps(value)
    yield f"  {name}={shown}"
    yield f"      {_kind(schema, definitions)}{f': {meaning}' if meaning else ''}"


def _resolved(
    schema: Mapping[str, Any], value: Any, definitions: Mapping[str, Any]
) -> Mapping[str, Any]:
    """The schema that a reference names, or the one of several that has the value's keys."""
    if "$ref" in schema:
        return definitions[schema["$ref"].rpartition("/")[2]]
    for option in schema.get("oneOf", ()):
        found = _resolved(option, value, definitions)
        if set(value) <= set(found.get("properties", ())):
            return found
    return schema


def _kind(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """A type and its bounds in words: "number, > 0, ≤ 1"."""
    schema = _resolved(schema, None, definitions)
    bounds = bounds_in_words(schema).replace("\N{NO-BREAK SPACE}", " ")
    return ", ".join(filter(None, [type_in_words(schema), bounds]))
