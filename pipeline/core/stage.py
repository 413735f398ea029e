"""What the pipeline must know about a stage besides its function: `STAGE` in each stage's file."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType

# Libraries of every stage that opens a NeMo checkpoint.
NEMO = (
    "torch", "nemo_toolkit", "megatron-core", "nemo_run", "lightning", "transformers", "peft",
    "numpy",
)  # fmt: skip


@dataclass(frozen=True)
class Component:
    """A part of a stage's code that the settings choose, with a version of its own.

    An artifact depends on the components that made it, not on those that it could have been made
    with: a change in one engine rebuilds no other engine.

    name: of the component, such as "engine/onnxruntime".
    version: raise it when its results change.
    libraries: distributions that it needs; their versions are part of the fingerprint.
    modules: where its code begins, as dotted names.
    """

    name: str
    version: int
    libraries: tuple[str, ...]
    modules: tuple[str, ...]


@dataclass(frozen=True)
class Stage:
    """Facts about a stage.

    version: raise it when the same settings and inputs give another result. It is part of the
        fingerprint of every artifact that the stage makes.
    libraries: distributions that the stage needs. Their versions are part of the fingerprint.
    optional_libraries: the same, used where they are installed, as Transformer Engine on a GPU.
    less_memory: what a user can change if memory runs out.
    """

    version: int
    libraries: tuple[str, ...] = ()
    optional_libraries: tuple[str, ...] = ()
    less_memory: str = ""


def stage_module(name: str) -> ModuleType:
    """The module of a stage. `import` is a keyword, so its file is import_.py."""
    return importlib.import_module(f"pipeline.stages.{'import_' if name == 'import' else name}")


def identity(
    stage: Stage, components: tuple[Component, ...], installed: Mapping[str, str]
) -> dict[str, dict[str, int] | dict[str, str]]:
    """The part of the code and the environment that decides a stage's result.

    installed: versions of installed distributions, by name. Those that are not installed are left
    out, so that installing one changes the identity too.
    """
    names = {*stage.libraries, *stage.optional_libraries}
    names.update(*(component.libraries for component in components))
    return {
        "versions": {"stage": stage.version, **{c.name: c.version for c in components}},
        "libraries": {name: installed[name] for name in sorted(names) if name in installed},
    }
