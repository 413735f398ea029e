"""Our configuration as an application of Hydra's own kind, for command_line.py.

    python -m bench.compared_libraries.hydra_app stage=config              # as Hydra reports errors
    TUNED=1 python -m bench.compared_libraries.hydra_app stage=config      # as ours would

@hydra.main composes conf/ and ConfigStore gives two sections types, as dataclasses: Hydra takes
neither pydantic's models nor their bounds.
"""

import os
import sys
from dataclasses import dataclass
from enum import Enum
from types import ModuleType
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf

from pipeline.config.schema import load
from pipeline.core.paths import CONF


@dataclass
class Prepare:
    max_length: int = MISSING
    validation_share: float = MISSING
    near_duplicate_threshold: float = MISSING
    leak_threshold: float = MISSING
    max_reject_share: float = MISSING
    samples: int = MISSING


class Format(Enum):
    """The only form in which Hydra knows a choice."""

    table = "table"
    json = "json"


@dataclass
class Profiles:
    format: Format = MISSING


def register() -> None:
    """What is composed: the types, then conf/config.yaml, then what the command line says."""
    store = ConfigStore.instance()
    store.store(name="types", node={"prepare": Prepare, "profiles": Profiles})
    quiet = {"run": {"dir": "."}, "output_subdir": None, "job": {"chdir": False}}
    off = [{"override hydra/job_logging": "disabled"}, {"override hydra/hydra_logging": "disabled"}]
    node = {"defaults": ["types", "config", "_self_", *off], "stage": MISSING, "hydra": quiet}
    store.store(name="app", node=node)


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="app")
def main(config: Any) -> None:
    tree: Any = OmegaConf.to_container(config, resolve=True, enum_to_str=True)
    assert isinstance(tree, dict)
    tree.pop("stage")
    load(tree)


def tuned() -> int:
    """Hydra raises what it would else print, and we print it in one line; without plugins."""
    sys.modules.setdefault("hydra_plugins", ModuleType("hydra_plugins")).__path__ = []
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        main()
    except Exception as error:
        words = [str(error), str(error.__cause__ or "")]
        print(f"{type(error).__name__}: {' '.join(' '.join(words).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    register()
    sys.exit(tuned() if "TUNED" in os.environ else main())
