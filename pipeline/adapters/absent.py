"""Importing a library without the optional packages that it takes long to import."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def absent(*packages: str) -> Iterator[None]:
    """Within it packages that are not imported yet appear not to be installed."""
    hidden = [name for name in packages if name not in sys.modules]
    # None makes `import` raise ModuleNotFoundError (The Python Language Reference, 5.3.1).
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
