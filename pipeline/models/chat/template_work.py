"""How much work a chat template may do: counted while it runs, the same on every machine.

A chat template is a program of a stranger. Neither the clock nor the memory of the machine may
decide about a row, so every template is given units of work, and each thing that it does costs
some. A unit is about a character of text or twenty nanoseconds. What an operation costs is known,
and charged, before it is done, so that no single one can fill the memory.

* Each iteration of a loop and each call of a macro costs by the size of its body.
* Each operation whose cost depends on its values costs by their size: see `template_operations`.
* What has no price there cannot be done at all.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import GeneratorType
from typing import Any, NoReturn

import jinja2
from jinja2.runtime import Context, Undefined

BASE = 2**25  # units of every rendering
PER_TURN = 2**16
PER_CHARACTER = 32  # of the conversation's text
LARGEST = 2**28  # seconds, however long the conversation
MAX_DEPTH = 100  # of nested lists and mappings
MAX_CALLS = 50  # macros that call one another
MAX_BITS = 128  # of a whole number
NODE = 64  # of a value, beside its text
VIEWS: tuple[type, ...] = (type({}.keys()), type({}.values()), type({}.items()))


class TooMuchWork(jinja2.TemplateError):
    """The template asks for more than it may."""


class Forbidden(jinja2.TemplateError):
    """The template uses something that chat templates may not use."""


class WorkContext(Context):
    """A rendering's variables, and the units of work that are left to it."""

    left: int = BASE
    calls: int = 0

    def charge(self, units: int) -> None:
        """Take units of work.

        Raises:
            TooMuchWork: fewer are left.
        """
        self.left -= units
        if self.left < 0:
            self.refuse()

    def refuse(self) -> NoReturn:
        raise TooMuchWork("it renders without end: too much work for a conversation of this size")

    def charge_text(self, value: Any, factor: int = 6) -> None:
        """Pay for writing a value as text; escapes make it up to `factor` times as long."""
        if isinstance(value, str):
            self.charge(len(value))
        else:
            self.charge(factor * self.deep(value, text=True)[0])

    def deep(self, value: Any, *, text: bool = False) -> tuple[int, int]:
        """Units of a value and everything in it, counted as often as it is found there; its depth.

        text: refuse what has no text of its own, such as a macro or a namespace.

        Raises:
            TooMuchWork: it is larger than what is left, or too deep.
        """
        units, depth, level = 0, 0, [value]
        while level:
            depth += 1
            if depth > MAX_DEPTH:
                raise TooMuchWork(f"it nests values over {MAX_DEPTH} deep")
            below: list[Any] = []
            for item in level:
                kind = type(item)
                units += NODE
                if kind is str:
                    units += len(item)
                elif kind is dict:
                    below.extend(item)
                    below.extend(item.values())
                elif kind is list or kind is tuple or kind in VIEWS:
                    below.extend(item)
                elif kind is int:
                    units += item.bit_length()
                elif isinstance(item, str):
                    units += len(item)
                elif isinstance(item, tuple | list | Mapping):  # such as the pairs of groupby
                    below.extend(item.values() if isinstance(item, Mapping) else item)
                elif text and not isinstance(item, bool | float | None | Undefined):
                    raise Forbidden(f"it writes a {kind.__name__} as text")
                if units + NODE * len(below) > self.left:
                    self.refuse()
            level = below
        return units, depth

    def derived(self, locals: dict[str, Any] | None = None) -> Context:
        raise Forbidden("it uses a block or a function that takes the context")


def work_for(messages: Sequence[Mapping[str, Any]]) -> int:
    """Units of work that a template gets for a conversation."""
    units = BASE
    for message in messages:
        units += PER_TURN
        for value in message.values():
            if type(value) is str:
                units += PER_CHARACTER * len(value)
    return min(units, LARGEST)


def charge_search(context: WorkContext, text: str, sought: object, *, backwards: bool) -> None:
    """Pay for looking for a text in another one, each time that it could be there.

    Forwards CPython compares at most 100 characters at each place; backwards, all.
    """
    length = len(sought) if isinstance(sought, str) else 1
    context.charge(len(text) * (1 + (length if backwards else min(length, 100)) // 8) + length)


def ticking(context: WorkContext, values: Iterable[Any], units: int = NODE) -> Iterator[Any]:
    """The values, each at a price."""
    for value in values:
        context.charge(units)
        yield value


def listed(context: WorkContext, values: Any) -> Any:
    """The values as something that can be measured: a generator as a list."""
    if isinstance(values, GeneratorType | range) or hasattr(values, "__next__"):
        return list(ticking(context, values))
    return values


def number(value: object, what: str) -> int:
    """A small whole number.

    Raises:
        Forbidden: it is something else.
    """
    if not isinstance(value, int) or abs(value) > 10**9:
        raise Forbidden(f"{what} should be a small whole number")
    return int(value)


def small(value: Any) -> Any:
    """A value, unless it is a huge number.

    Raises:
        TooMuchWork: it is.
    """
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        raise TooMuchWork(f"it computes a number of over {MAX_BITS} bits")
    return value


def key(value: Any) -> Any:
    """A value that is quick to look up.

    Raises:
        Forbidden: it is a list, a tuple or a mapping.
    """
    if isinstance(value, list | tuple | dict):
        raise Forbidden(f"it looks a {type(value).__name__} up")
    return value
