"""What a chat template may call, and the price of each: filters, tests, methods and functions.

What is not in these tables is refused. Left out of Jinja's own are `lipsum` and `random`, which
give another text each time, and a few that no chat template needs and whose cost is hard to know
(`pprint`, `striptags`, `urlize`, `wordwrap`, `xmlattr`).
"""

import json
import operator
import re
import string
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import wraps
from typing import Any

import jinja2
from jinja2 import pass_context, pass_environment
from jinja2.filters import FILTERS
from jinja2.tests import TESTS
from jinja2.utils import _PassArg
from markupsafe import soft_str

from pipeline.models.chat.template_work import (
    NODE,
    Forbidden,
    WorkContext,
    charge_search,
    key,
    listed,
    number,
    small,
    ticking,
)

Operation = Callable[..., Any]
Price = Callable[..., Any]

FILTER = 512  # units of a filter, beside what it does
ITEM = 80  # units of an item of a new list
LONGEST_NAME = 256  # characters of a path of attributes, which is followed for each item
LONGEST_FORMAT = 4096  # characters of a format string
WIDEST = 999  # characters that a directive of a format may ask for
LONGEST_MESSAGE = 500
DIRECTIVE = re.compile(r"%(?:\([^)]*\))?[#0\- +]*(\*|\d*)(?:\.(\*|\d*))?")


def paid(context: WorkContext, result: Any) -> Any:
    """Pay for a result, whose size was limited by a price before."""
    if isinstance(result, str):
        context.charge(len(result) + NODE)
    elif isinstance(result, list | tuple):
        context.charge(ITEM * len(result) + NODE)
    else:
        small(result)
    return result


COMPARISONS: dict[str, Operation] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "lteq": operator.le,
    "gt": operator.gt,
    "gteq": operator.ge,
    "in": lambda left, right: left in right,
    "notin": lambda left, right: left not in right,
}

# --- comparisons and formats --------------------------------------------------------------------


def charge_comparison(context: WorkContext, name: str, left: Any, right: Any) -> None:
    """Pay for `left == right` and the like, or for `left in right`."""
    if type(left) is str and type(right) is str and name not in ("in", "notin"):
        context.left -= NODE + min(len(left), len(right))
        if context.left < 0:
            context.refuse()
    elif name in ("in", "notin"):
        if isinstance(right, str):
            charge_search(context, right, left, backwards=False)
        elif isinstance(right, dict):
            context.charge(context.deep(left)[0])
        else:
            context.charge(context.deep(left)[0] + context.deep(right)[0])
    else:
        context.charge(context.deep(left)[0] + context.deep(right)[0])


def charge_percent_format(context: WorkContext, form: str, values: Any) -> None:
    """Pay for `form % values`."""
    _check_format(form)
    directives = 0
    for found in DIRECTIVE.finditer(form):
        directives += 1
        for width in found.groups():
            if width and (width == "*" or int(width[:9]) > WIDEST):
                raise Forbidden(f"a format asks for over {WIDEST} characters")
            context.charge(int(width or 0))
    # Each value is written once, except where the directives name them.
    times = directives if isinstance(values, Mapping) else 1
    context.charge(len(form) + 12 * times * context.deep(values, text=True)[0])


def charge_brace_format(context: WorkContext, form: str, args: Any, kwargs: Any) -> None:
    """Pay for `form.format(*args, **kwargs)`."""
    _check_format(form)
    fields = 0
    for _, field, spec, _ in string.Formatter().parse(form):
        fields += field is not None
        if spec and ("{" in spec or any(int(w) > WIDEST for w in re.findall(r"\d{1,9}", spec))):
            raise Forbidden(f"a format asks for over {WIDEST} characters")
    values = context.deep([*args, *kwargs.values()], text=True)[0]
    context.charge(len(form) + fields * (WIDEST + 12 * values))


def _check_format(form: str) -> None:
    if len(form) > LONGEST_FORMAT:
        raise Forbidden(f"a format has over {LONGEST_FORMAT} characters")


# --- methods ------------------------------------------------------------------------------------

Method = Callable[..., Any]  # context, the object, the bound method, its arguments


def _linear(factor: int) -> Method:
    """A method that reads its text and its arguments once, and writes at most `factor` times it."""

    def call(context: WorkContext, text: str, method: Operation, *args: Any, **kwargs: Any) -> Any:
        context.charge(factor * len(text) + context.deep([*args, *kwargs.values()])[0])
        return paid(context, method(*args, **kwargs))

    return call


def _strip(
    context: WorkContext, text: str, method: Operation, chars: Any = None, /, **kwargs: Any
) -> Any:
    charge_search(context, text, chars, backwards=True)
    return paid(context, method(chars, **kwargs))


def _search(*, backwards: bool) -> Method:
    def call(context: WorkContext, text: str, method: Operation, sought: Any, *rest: Any) -> Any:
        charge_search(context, text, sought, backwards=backwards)
        return paid(context, method(sought, *rest))

    return call


def _split(*, backwards: bool) -> Method:
    def call(
        context: WorkContext, text: str, method: Operation, sep: Any = None, maxsplit: int = -1
    ) -> Any:
        charge_search(context, text, sep, backwards=backwards)
        parts = text.count(sep) if isinstance(sep, str) and sep else len(text) // 2
        if maxsplit >= 0:
            parts = min(parts, maxsplit)
        context.charge(len(text) + NODE * (parts + 1))
        return paid(context, method(sep, maxsplit))

    return call


def _wide(context: WorkContext, text: str, method: Operation, width: int, *fill: Any) -> Any:
    context.charge(len(text) + 4 * max(0, number(width, "a width")))
    return paid(context, method(width, *fill))


def _expand_tabs(context: WorkContext, text: str, method: Operation, tabsize: int = 8) -> Any:
    tabs = text.count("\t") * abs(number(tabsize, "a tab's width"))
    context.charge(len(text) + tabs)
    return paid(context, method(tabsize))


def _join(context: WorkContext, text: str, method: Operation, values: Any) -> Any:
    values = listed(context, values)
    charge_join(context, text, values)
    return paid(context, method(values))


def charge_join(context: WorkContext, separator: object, values: Any) -> None:
    """Pay for the texts of values with a separator between them, which any may be Markup."""
    units, _ = context.deep(values, text=True)
    items = len(values) if hasattr(values, "__len__") else 0
    escaped = 6 if any(hasattr(v, "__html__") for v in (separator, *values)) else 1
    context.charge(escaped * (units + items * (len(str(separator)) if items else 0)))


def _replace(
    context: WorkContext, text: str, method: Operation, old: str, new: str, times: int = -1
) -> Any:
    charge_replace(context, text, old, new, times)
    return paid(context, method(old, new, times))


def charge_replace(
    context: WorkContext, text: str, old: object, new: object, times: int | None
) -> None:
    if not isinstance(old, str) or not isinstance(new, str):
        raise Forbidden("it replaces what is not text")
    charge_search(context, text, old, backwards=False)
    found = text.count(old)
    if times is not None and times >= 0:
        found = min(found, times)
    context.charge(len(text) + 6 * found * len(new))


def _of_values(
    context: WorkContext, owner: Any, method: Operation, *args: Any, **kwargs: Any
) -> Any:
    """A method of a list or tuple, which compares its items or copies them."""
    context.charge(context.deep([owner, *args, *kwargs.values()])[0])
    return method(*args, **kwargs)


def _look_up(context: WorkContext, _: Any, method: Operation, name: Any, *default: Any) -> Any:
    return method(key(name), *default)


def _free(context: WorkContext, _: Any, method: Operation, *args: Any, **kwargs: Any) -> Any:
    return method(*args, **kwargs)


def _copy(context: WorkContext, owner: Any, method: Operation) -> Any:
    context.charge(ITEM * len(owner))
    return method()


TEXT_METHODS: dict[str, Method] = {
    **dict.fromkeys(
        "isalnum isalpha isascii isdecimal isdigit isidentifier islower isnumeric isprintable "
        "isspace istitle isupper startswith endswith removeprefix removesuffix".split(),
        _linear(1),
    ),
    **dict.fromkeys("lower upper title capitalize swapcase casefold".split(), _linear(4)),
    "splitlines": _linear(NODE // 2),
    **dict.fromkeys("strip lstrip rstrip".split(), _strip),
    **dict.fromkeys("find index count partition".split(), _search(backwards=False)),
    **dict.fromkeys("rfind rindex rpartition".split(), _search(backwards=True)),
    "split": _split(backwards=False),
    "rsplit": _split(backwards=True),
    "replace": _replace,
    "join": _join,
    **dict.fromkeys("ljust rjust center zfill".split(), _wide),
    "expandtabs": _expand_tabs,
}
LIST_METHODS: dict[str, Method] = dict.fromkeys(("index", "count", "copy"), _of_values)
MAPPING_METHODS: dict[str, Method] = {
    "get": _look_up,
    "copy": _copy,
    **dict.fromkeys(("keys", "values", "items"), _free),
}
LOOP_METHODS: dict[str, Method] = {"cycle": _free, "changed": _of_values}
CYCLER_METHODS: dict[str, Method] = dict.fromkeys(("next", "reset"), _free)


# --- functions ----------------------------------------------------------------------------------


def raise_exception(message: object) -> None:
    shown = message if isinstance(message, str | int | float) else type(message).__name__
    raise jinja2.TemplateError(str(shown)[:LONGEST_MESSAGE])


def strftime_now(form: str) -> str:
    if not isinstance(form, str) or len(form) > LONGEST_MESSAGE:
        raise Forbidden("it writes the time with a format that is too long")
    return datetime.now().strftime(form)


def charge_mapping(context: WorkContext, args: Any, kwargs: Any) -> tuple[Any, ...]:
    """Pay for `dict(…)` or `namespace(…)`. Returns its arguments, generators as lists.

    Raises:
        Forbidden: a key is a list, a tuple or a mapping.
    """
    checked = []
    for given in args:
        pairs = listed(context, given)
        context.charge(3 * context.deep(pairs)[0])
        if isinstance(pairs, list | tuple):
            pairs = [(key(pair[0]), *pair[1:]) for pair in pairs]
        checked.append(pairs)
    context.charge(2 * ITEM * len(kwargs))
    return tuple(checked)


# --- filters ------------------------------------------------------------------------------------


def _priced(function: Operation, price: Price) -> Operation:
    """A filter that is paid for. `price` may return other arguments than it was given."""
    passed = _PassArg.from_obj(function)

    @pass_context
    @wraps(function)
    def run(context: WorkContext, *args: Any, **kwargs: Any) -> Any:
        context.charge(FILTER)
        changed = price(context, *args, **kwargs)
        args = args if changed is None else changed
        if passed is _PassArg.context:
            args = (context, *args)
        elif passed is _PassArg.eval_context:
            args = (context.eval_ctx, *args)
        elif passed is _PassArg.environment:
            args = (context.environment, *args)
        result = function(*args, **kwargs)
        if hasattr(result, "__next__"):
            return ticking(context, result, 2 * NODE)
        return paid(context, result)

    return run


def _text(factor: int) -> Price:
    """Of a filter that reads a value as text, and writes at most `factor` times its size."""

    def price(context: WorkContext, value: Any = "", *args: Any, **kwargs: Any) -> None:
        context.charge_text(value)
        context.charge(factor * (len(value) if isinstance(value, str) else 0))
        context.charge(context.deep([*args, *kwargs.values()])[0])

    return price


@pass_context
def trim(context: WorkContext, value: Any, chars: Any = None) -> str:
    """Jinja's `trim`, as nearly every template uses it on every turn."""
    if type(value) is str and chars is None:
        context.left -= NODE + len(value)
        if context.left < 0:
            context.refuse()
        return value.strip()
    context.charge_text(value)
    text = soft_str(value)
    charge_search(context, text, chars, backwards=True)
    return text.strip(chars)


def _values(context: WorkContext, values: Any, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
    """Of a filter that compares and copies values; sorting does so for each about log2(n) times."""
    values = listed(context, values)
    units = context.deep(values)[0] + context.deep([*args, *kwargs.values()])[0]
    items = len(values) if hasattr(values, "__len__") else 0
    context.charge((units + items * _path(*args, **kwargs)) * (1 + items.bit_length()))
    return (values, *args)


def _path(*args: Any, **kwargs: Any) -> int:
    """Units of following the paths of attributes among a filter's arguments, for each item."""
    longest = max((len(a) for a in (*args, *kwargs.values()) if isinstance(a, str)), default=0)
    if longest > LONGEST_NAME:
        raise Forbidden(f"a filter's argument has over {LONGEST_NAME} characters")
    return NODE * longest


def _numbers(context: WorkContext, values: Any, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
    start = kwargs.get("start", args[1] if len(args) > 1 else 0)
    if not isinstance(start, int | float):
        raise Forbidden("it adds up what is no number")
    return _values(context, values, *args, **kwargs)


def _copied(context: WorkContext, values: Any) -> tuple[Any]:
    values = listed(context, values)
    context.charge(ITEM * (len(values) if hasattr(values, "__len__") else 1))
    return (values,)


def _lazy(context: WorkContext, values: Any, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
    """Of a filter that does something with each value, when it is asked for."""
    context.charge(context.deep([*args, *kwargs.values()])[0])
    names = _path(*(a for a in (*args[:1], kwargs.get("attribute"), kwargs.get("default")) if a))
    return (ticking(context, values, NODE + names), *args)


def _pairs(context: WorkContext, values: Any) -> None:
    """Of a filter whose result is paid for as it is read."""


def _groups(context: WorkContext, values: Any, many: Any, fill: Any = None) -> tuple[Any, ...]:
    values = listed(context, values)
    groups = abs(number(many, "a number of groups"))
    context.charge(ITEM * (groups + (len(values) if hasattr(values, "__len__") else 1)))
    return (values, many, fill)


def _joined(
    context: WorkContext, values: Any, separator: Any = "", attribute: Any = None
) -> tuple[Any, ...]:
    values = listed(context, values)
    if attribute is not None:
        context.charge(_path(str(attribute)) * len(values))
    charge_join(context, separator, values)
    return (values, separator, attribute)


def _replaced(context: WorkContext, value: Any, old: Any, new: Any, times: Any = None) -> None:
    context.charge_text(value)
    charge_replace(context, value if isinstance(value, str) else "", old, new, times)


def _centered(context: WorkContext, value: Any, width: Any = 80) -> None:
    context.charge_text(value)
    context.charge(4 * max(0, number(width, "a width")))


def _indented(context: WorkContext, text: Any, width: Any = 4, *args: Any, **kwargs: Any) -> None:
    if not isinstance(text, str):
        raise Forbidden("it indents what is not text")
    wide = len(width) if isinstance(width, str) else max(0, number(width, "a width"))
    context.charge(NODE // 2 * len(text))
    context.charge((len(text.splitlines()) + 2) * wide)


def _formatted(context: WorkContext, form: Any, *args: Any, **kwargs: Any) -> None:
    if not isinstance(form, str):
        raise Forbidden("its format is not text")
    charge_percent_format(context, form, kwargs or args)


def _rounded(context: WorkContext, value: Any, precision: Any = 0, method: str = "common") -> None:
    if not isinstance(value, int | float) or abs(number(precision, "a precision")) > 30:
        raise Forbidden("it rounds what is no number, or to over 30 digits")


def _number(context: WorkContext, value: Any, *args: Any, **kwargs: Any) -> None:
    context.charge(len(value) if isinstance(value, str) else 0)


def tojson(
    context: WorkContext,
    value: object,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as transformers writes it."""
    units, depth = context.deep(value)
    wide = len(indent) if isinstance(indent, str) else indent or 0
    for given in separators or ():
        wide += len(given)
    if wide > LONGEST_MESSAGE:
        raise Forbidden("its JSON is indented too far")
    context.charge(6 * units + (units // NODE + 1) * wide * depth)
    if indent is None and separators is None and not sort_keys and not ensure_ascii:
        return str(paid(context, _ENCODER.encode(value)))
    text = json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
    return str(paid(context, text))


_ENCODER = json.JSONEncoder(ensure_ascii=False)

# Quick whatever their values are; Jinja may compute them beforehand.
_FREE_FILTERS = ("attr", "count", "d", "default", "first", "last", "length")
_FILTER_PRICES: dict[str, Price] = {
    **dict.fromkeys(("lower", "upper", "capitalize", "title", "wordcount"), _text(4)),
    **dict.fromkeys(("e", "escape", "forceescape", "safe", "string", "truncate"), _text(6)),
    "urlencode": _text(12),
    **dict.fromkeys(("dictsort", "groupby", "max", "min", "sort", "unique"), _values),
    "sum": _numbers,
    **dict.fromkeys(("list", "reverse"), _copied),
    "items": _pairs,
    **dict.fromkeys(("map", "reject", "rejectattr", "select", "selectattr"), _lazy),
    **dict.fromkeys(("batch", "slice"), _groups),
    "join": _joined,
    "replace": _replaced,
    "center": _centered,
    "indent": _indented,
    "format": _formatted,
    "round": _rounded,
    **dict.fromkeys(("abs", "filesizeformat", "float", "int"), _number),
}


@pass_context
def charge_node(context: WorkContext, units: Any) -> bool:
    """What the compiler adds to the test of a loop."""
    context.charge(max(NODE, number(units, "a price")))
    return True


def filters() -> dict[str, Operation]:
    """The filters that a template may use, by name."""
    return {
        **{name: FILTERS[name] for name in _FREE_FILTERS},
        **{name: _priced(FILTERS[name], price) for name, price in _FILTER_PRICES.items()},
        "tojson": pass_context(tojson),
        "trim": trim,
        CHARGE: charge_node,
        KEY: key,
    }


# The compiler's own; no template can write these names as a filter's.
CHARGE, KEY = "charge node", "key of a mapping"


# --- tests --------------------------------------------------------------------------------------


def _compared(name: str, function: Operation) -> Operation:
    @pass_context
    def test(context: WorkContext, left: Any, right: Any) -> bool:
        charge_comparison(context, name, left, right)
        return bool(function(left, right))

    return test


def _of_number(function: Operation) -> Operation:
    @pass_context
    def test(context: WorkContext, value: Any, *by: Any) -> bool:
        if not isinstance(value, int | float):  # on a text, % formats it
            raise Forbidden("it asks whether something that is no number is even or odd")
        return bool(function(value, *by))

    return test


def _of_text(function: Operation) -> Operation:
    @pass_context
    def test(context: WorkContext, value: Any) -> bool:
        context.charge_text(value)
        return bool(function(value))

    return test


def _of_name(function: Operation) -> Operation:
    @pass_environment
    def test(environment: Any, value: Any) -> bool:
        return bool(function(environment, key(value)))

    return test


def tests() -> dict[str, Operation]:
    """Jinja's tests by name, those that can be costly with their price."""
    known: dict[str, Any] = dict(TESTS)
    table = dict(known)
    for name, function in known.items():
        if function in COMPARISONS.values():
            table[name] = _compared("eq", function)
    table["in"] = _compared("in", known["in"])
    for name in ("odd", "even", "divisibleby"):
        table[name] = _of_number(known[name])
    for name in ("lower", "upper"):
        table[name] = _of_text(known[name])
    for name in ("filter", "test"):
        table[name] = _of_name(known[name])
    return table
