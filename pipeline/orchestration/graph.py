"""The graph that dvc.yaml declares: which inputs, files and settings each stage depends on.

A single stage, `stage=all` and `dvc repro` all read it from there, so they cannot disagree.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.core.errors import ConfigError
from pipeline.core.paths import MANIFEST, graph_file

# Reports versions of stages and libraries to DVC (stage_versions.py); makes no artifact.
VERSIONS = "versions"
# In the folder of that name: what the base model is. A stage that depends on it reads model.path.
MODEL_FILE = "model.json"
MOST_BRACKETS = 1000  # in a YAML file
# Stages outside the graph: nothing in the chain depends on them. `all` is the graph itself.
OUTSIDE = (
    "retrain", "serve", "pull", "canary", "promote", "rollback", "versions", "profiles", "verify",
    "doctor", "plan", "inspect", "synthesize", "lineage", "graph", "clean",
)  # fmt: skip
RESTORE = (
    "restore it (`git checkout dvc.yaml`), or copy that of a new project (`python -m pipeline init "
    "DIR`)"
)
# Stages of earlier versions, and what replaced them.
REMOVED = {"pretrain": "run `python -m tools.pretrain OUT` in a checkout of the source"}


@dataclass(frozen=True)
class Node:
    """One stage: its input stages, the files and the parts of the configuration it depends on."""

    name: str
    inputs: tuple[str, ...]
    files: tuple[Path, ...]
    params: tuple[str, ...]


def read_graph(tree: Mapping[str, Any]) -> dict[str, Node]:
    """Stages by name, in the order of dvc.yaml, with `${…}` filled in from the configuration.

    Raises:
        ConfigError: dvc.yaml cannot be read.
    """
    file = graph_file()
    try:
        declared = read_yaml(_text(file))["stages"]
        declared.pop(VERSIONS, None)
        return {name: _node(name, entry, tree) for name, entry in declared.items()}
    except ConfigError:
        raise
    except Exception as error:  # what YAML can raise, and what a wrong type leads to
        why = " ".join(str(error).split())[:160] or type(error).__name__
        raise ConfigError(f"{file} cannot be read ({why}): {RESTORE}") from error


def declared_stages() -> list[str]:
    """Names of the stages that DVC runs and that make an artifact, in the order of dvc.yaml.

    Without reading YAML: --help must answer at once.

    Raises:
        ConfigError: dvc.yaml cannot be read, or has none.
    """
    file = graph_file()
    lines = _text(file).partition("\nstages:\n")[2]
    names = [name for name in re.findall(r"^  (\w+):$", lines, re.MULTILINE) if name != VERSIONS]
    if not names:
        raise ConfigError(f"{file} declares no stages: {RESTORE}")
    return names


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except (OSError, ValueError) as error:  # the second: it is not text
        raise ConfigError(f"{file} cannot be read ({error}): {RESTORE}") from error


def read_yaml(text: str | bytes) -> Any:
    """What a YAML file of ours or of DVC's says.

    Raises:
        ValueError: it is nested more deeply than either writes: PyYAML would take minutes.
        yaml.YAMLError, RecursionError: it is not YAML.
    """
    import yaml

    text = text.decode() if isinstance(text, bytes) else text
    if max(text.count("["), text.count("{")) > MOST_BRACKETS:
        raise ValueError("it is nested too deeply")
    return yaml.safe_load(text)


def select(tree: Mapping[str, Any], params: tuple[str, ...]) -> dict[str, Any]:
    """The parts of the configuration under these dotted names.

    Raises:
        ConfigError: dvc.yaml names a setting that does not exist.
    """
    chosen: dict[str, Any] = {}
    for name in params:
        value: Any = tree
        for key in name.split("."):
            if key not in value:
                raise ConfigError(
                    f"dvc.yaml depends on the setting {name}, which conf/ does not have"
                )
            value = value[key]
        chosen[name] = value
    return chosen


def _node(name: str, entry: Mapping[str, Any], tree: Mapping[str, Any]) -> Node:
    def fill(match: re.Match[str]) -> str:
        return str(select(tree, (match[1],))[match[1]])

    paths = [Path(re.sub(r"\$\{([\w.]+)\}", fill, dependency)) for dependency in entry["deps"]]
    manifests = [p for p in paths if p.name == MANIFEST]
    files = [p for p in paths if p.name != MANIFEST and p.parent.name != VERSIONS]
    if any(p.parent.name == VERSIONS and p.name == MODEL_FILE for p in paths):
        files.append(Path(select(tree, ("model.path",))["model.path"]))
    return Node(name, tuple(m.parent.name for m in manifests), tuple(files), tuple(entry["params"]))
