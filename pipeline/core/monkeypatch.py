"""Temporarily replacing attributes of libraries."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

Patch = tuple[Any, str, Any]  # owner, attribute, replacement


@contextmanager
def replaced(patches: Iterable[Patch]) -> Iterator[None]:
    """Set each attribute; restore them in reverse order at the end, even after errors."""
    with ExitStack() as stack:
        for owner, name, replacement in patches:
            if name in vars(owner):
                stack.callback(setattr, owner, name, vars(owner)[name])
            else:  # inherited
                stack.callback(delattr, owner, name)
            setattr(owner, name, replacement)
        yield
