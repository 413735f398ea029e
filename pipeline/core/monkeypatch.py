"""Attributes of libraries that are replaced while a block runs, each with a record of the reason.

    ROWS = Patch(owner="library.module:Class", names=("method",), distribution="library", ...)
    with replaced(ROWS.by(method=ours)):
        ...

A record names the version that it was written for and a digest of the code that it relies on.
`make patches` compares both with what is installed, and writes docs/patches.md.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple


class Replacement(NamedTuple):
    """An attribute and its new value."""

    owner: Any
    name: str
    value: Any


@dataclass(frozen=True)
class Patch:
    """Attributes of one module or class that are replaced together, for one reason.

    owner: "package.module" or "package.module:Class".
    names: the attributes.
    distribution, version: what the replacement was written for.
    reason: why it is needed, in one sentence.
    digest: of the source of `sources`; it changes when the library's code does.
    reads: further code that the replacement relies on, as "package.module:Class.function".
    source: where the code of `names` is, if not in `owner`: of re-exported or compiled functions,
        whose signatures are in stub files.
    where: the machines that need it.
    required: why nothing runs without it; "" if `finetune.patches=none` leaves it out.
    link: an upstream issue, pull request or paper.
    """

    owner: str
    names: tuple[str, ...]
    distribution: str
    version: str
    reason: str
    digest: str
    reads: tuple[str, ...] = ()
    source: tuple[str, ...] = ()
    where: Literal["all", "CPU", "GPU", "Transformer Engine"] = "all"
    required: str = ""
    link: str = ""

    @property
    def sources(self) -> tuple[str, ...]:
        """The code that the digest covers, as "package.module:Class.function"."""
        module, _, path = self.owner.partition(":")
        prefix = f"{module}:{path}." if path else f"{module}:"
        return (*(self.source or (prefix + name for name in self.names)), *self.reads)

    def original(self, name: str) -> Any:
        """The library's own attribute, for a replacement that calls it."""
        return getattr(self._owner(), name)

    def by(self, **values: Any) -> list[Replacement]:
        """The replacements for `names`, in their order. Imports the library.

        Raises:
            TypeError: a name has no value, or a value is for another name.
        """
        if values.keys() != set(self.names):
            raise TypeError(f"{self.owner}: replace {', '.join(self.names)}, all and no others")
        owner = self._owner()
        return [Replacement(owner, name, values[name]) for name in self.names]

    def _owner(self) -> Any:
        module, _, path = self.owner.partition(":")
        owner = importlib.import_module(module)
        return getattr(owner, path) if path else owner


def other_versions(patches: Iterable[Patch], installed: Mapping[str, str]) -> str:
    """Says in one line which libraries are not of the versions that the patches were written for.

    installed: versions by distribution. "" if all are the same, or not installed. A build's suffix,
    as in 2.13.0+cpu, does not count.
    """
    written_for = {patch.distribution: patch.version for patch in patches}
    differing = [
        f"{library} {found} (patches: {written_for[library]})"
        for library in sorted(written_for)
        if (found := installed.get(library)) and found.partition("+")[0] != written_for[library]
    ]
    return ", ".join(differing)


def install(replacements: Iterable[Replacement]) -> None:
    """Set each attribute for the rest of the process."""
    for owner, name, value in replacements:
        setattr(owner, name, value)


@contextmanager
def replaced(replacements: Iterable[Replacement]) -> Iterator[None]:
    """Set each attribute, and restore them in reverse order, also after an error."""
    with ExitStack() as stack:
        for owner, name, value in replacements:
            if name in vars(owner):
                stack.callback(setattr, owner, name, vars(owner)[name])
            else:  # inherited
                stack.callback(delattr, owner, name)
            setattr(owner, name, value)
        yield
