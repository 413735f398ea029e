"""Importing a library without the slow packages that it imports and that we do not use."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any


@contextmanager
def absent(*packages: str) -> Iterator[None]:
    """Make packages appear not to be installed, including those that are already imported."""
    loaded = {name: m for name, m in sys.modules.items() if name.partition(".")[0] in packages}
    hidden = {*packages, *loaded}
    # None makes `import` raise ModuleNotFoundError (The Python Language Reference, 5.3.1).
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
        sys.modules.update(loaded)


def unless_found(*packages: str) -> tuple[str, ...]:
    """The packages, to hide from transformers; none if it is imported already.

    It notes what is installed when it is imported, and imports that later, where it is used.
    """
    return () if "transformers" in sys.modules else packages


@contextmanager
def stand_in(module: str, **members: Any) -> Iterator[None]:
    """Replace a module by one that has only these members."""
    loaded = sys.modules.get(module)
    sys.modules[module] = ModuleType(module)
    vars(sys.modules[module]).update(members)
    try:
        yield
    finally:
        del sys.modules[module]
        if loaded:
            sys.modules[module] = loaded


@contextmanager
def bytecode_written() -> Iterator[None]:
    """Python writes the bytecode of what is imported, even if PYTHONDONTWRITEBYTECODE is set, as in
    many containers: each process would compile thousands of large modules anew."""
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, False
    try:
        yield
    finally:
        sys.dont_write_bytecode = before
