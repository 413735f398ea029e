"""Writes config.pbtxt, Triton's file for a model: protobuf's text format of its ModelConfig."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.core.errors import ConfigError

_ENUM = re.compile(r"(TYPE|KIND|FORMAT|MODEL_CONTROL)_[A-Z0-9_]+")
_FIELD = re.compile(r"[a-z_][a-z0-9_]*")
# Maps of ModelConfig: written as repeated messages with a key and a value.
_MAPS = ("parameters", "metric_tags", "cc_model_filenames", "input_map", "output_map")


def text(config: Mapping[str, Any]) -> str:
    """
    >>> print(text({"name": "a", "parameters": {"k": "v"}, "input": [{"dims": [1]}]}), end="")
    name: "a"
    parameters { key: "k" value { string_value: "v" } }
    input { dims: 1 }

    Raises:
        ConfigError: a name is no field, or a value has no form in the file.
    """
    return "".join(f"{line}\n" for line in _lines(config))


def merged(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A config with other fields: mappings are joined, anything else takes the old one's place."""
    found = dict(config)
    for name, value in changes.items():
        old = found.get(name)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        found[name] = merged(old, value) if both else value  # type: ignore[arg-type]
    return found


def _lines(config: Mapping[str, Any]) -> Iterator[str]:
    for name, value in config.items():
        if not _FIELD.fullmatch(str(name)):
            raise ConfigError(f"engine.arguments.config: {name} is no field of config.pbtxt")
        if name in _MAPS and isinstance(value, Mapping):
            for key, content in value.items():
                yield f"{name} {{ key: {_scalar(str(key))} {_value_of(name, content)} }}"
            continue
        for item in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(item, Mapping):
                yield f"{name} {{ {' '.join(_lines(item))} }}"
            else:
                yield f"{name}: {_scalar(item)}"


def _value_of(name: str, content: Any) -> str:
    if name != "parameters":
        return f"value: {_scalar(content)}"
    return f"value {{ string_value: {_scalar(str(content))} }}"


def _scalar(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, str):
        return value if _ENUM.fullmatch(value) else _quoted(value)
    raise ConfigError(f"engine.arguments.config: {value!r} has no form in config.pbtxt")


def _quoted(value: str) -> str:
    parts = []
    for byte in value.encode():
        char = chr(byte)
        if char in '"\\':
            parts.append("\\" + char)
        else:
            parts.append(char if 32 <= byte < 127 else f"\\{byte:03o}")
    return f'"{"".join(parts)}"'
