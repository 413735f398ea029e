"""Importing a library without packages that take long to import and of which nothing is used."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType


@contextmanager
def absent(*packages: str) -> Iterator[None]:
    """Within it packages appear not to be installed, those that are imported already as well."""
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


@contextmanager
def only_names(package: str, *classes: str) -> Iterator[None]:
    """Within it a package has nothing but empty classes of these names, unless it is imported.

    For one that a library insists on, and asks only whether something is an instance.
    """
    if package in sys.modules:
        yield
        return
    module = ModuleType(package)
    for name in classes:
        setattr(module, name, type(name, (), {}))
    sys.modules[package] = module
    try:
        yield
    finally:
        del sys.modules[package]
