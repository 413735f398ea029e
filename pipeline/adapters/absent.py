"""Importing a library without the optional packages that it takes long to import."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


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
