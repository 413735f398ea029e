"""The Jinja environment of chat templates: transformers' own, in which all work is paid for."""

from types import BuiltinMethodType, FunctionType, MethodType
from typing import Any

from jinja2 import nodes, pass_context
from jinja2.compiler import CodeGenerator, Frame, optimizeconst
from jinja2.ext import Extension
from jinja2.runtime import Context, LoopContext, Macro, Undefined, str_join
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Cycler, Joiner, Namespace, missing

from pipeline.models.chat import template_operations as operations
from pipeline.models.chat.template_work import (
    MAX_BITS,
    MAX_CALLS,
    NODE,
    Forbidden,
    TooMuchWork,
    WorkContext,
    key,
    small,
)

CALL = 512  # units of a call, beside what is called
_PER_NODE = 16  # units of a node of a loop's or macro's body, each time that it runs
_HEAVY: dict[type, int] = {nodes.Dict: 256, nodes.List: 64, nodes.Tuple: 64, nodes.TemplateData: 64}
_UNUSABLE = (
    *(nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends, nodes.Block),
    nodes.ScopedEvalContextModifier,
)
_DICT_ATTRIBUTES = frozenset(dir(dict))
# Attributes that are safe to read, by the type of their owner.
_PLAIN_ATTRIBUTES: dict[type, frozenset[str]] = {
    str: frozenset(operations.TEXT_METHODS),
    dict: frozenset(operations.MAPPING_METHODS),
    LoopContext: frozenset(
        "index index0 revindex revindex0 first last length previtem nextitem".split()
    ),
}
_SHORT = 256  # characters of a constant that is quick to compare with


# Around what a template's generation blocks write, where they are marked.
BEGIN, END = "\ue002", "\ue003"


def environment(*, marked: bool = False) -> "PricedEnvironment":
    """An environment as transformers has it, with a price for everything.

    marked: whether templates write BEGIN and END around their generation blocks.
    """
    generation = _MarkedGeneration if marked else _Generation
    made = PricedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[generation, "jinja2.ext.loopcontrols"]
    )
    made.filters.clear()
    made.filters.update(operations.filters())
    made.tests.clear()
    made.tests.update(operations.tests())
    made.globals.pop("lipsum")
    made.globals["raise_exception"] = operations.raise_exception
    made.globals["strftime_now"] = operations.strftime_now
    made.finalize = _written
    return made


@pass_context
def _written(context: WorkContext, value: Any) -> Any:
    """A value that is about to be written as text."""
    if type(value) is str:
        context.left -= NODE + len(value)
        if context.left < 0:
            context.refuse()
    else:
        context.charge_text(value)
    return value


class _Generation(Extension):
    """The `{% generation %}` block of newer templates, which marks what the assistant writes."""

    tags = {"generation"}  # noqa: RUF012 (as jinja2 declares it)

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(
            parser.parse_statements(("name:endgeneration",), drop_needle=True)
        ).set_lineno(line)


class _MarkedGeneration(_Generation):
    """The same block, with a mark on either side of what it writes."""

    def parse(self, parser: Any) -> nodes.Node:
        scope = super().parse(parser)
        assert isinstance(scope, nodes.Scope)
        begin, end = (
            nodes.Output([nodes.TemplateData(mark, lineno=scope.lineno)], lineno=scope.lineno)
            for mark in (BEGIN, END)
        )
        scope.body = [begin, *scope.body, end]
        return scope


class _PricedCode(CodeGenerator):
    """Python code in which every operation whose cost depends on its values is paid for.

    A body's constant cost is taken at its head; code outside of loops and macros runs once, and is
    as short as the template.
    """

    def visit_ExprStmt(self, node: nodes.ExprStmt, frame: Frame) -> None:
        assert isinstance(node.node, nodes.Const)  # put there by _add_prices
        self.writeline(f"context.left -= {node.node.value}")
        self.writeline("if context.left < 0: context.refuse()")

    @optimizeconst
    def visit_Add(self, node: nodes.BinExpr, frame: Frame) -> None:
        parts: list[nodes.Expr] = []  # a + b + c at once
        left: nodes.Expr = node
        while isinstance(left, nodes.Add):
            parts.insert(0, left.right)
            left = left.left
        self.write("environment.added(context, (")
        for part in (left, *parts):
            self.visit(part, frame)
            self.write(", ")
        self.write("))")

    @optimizeconst
    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.joined(context, (")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")

    @optimizeconst
    def visit_Compare(self, node: nodes.Compare, frame: Frame) -> None:
        pairs = list(zip([node.expr, *(o.expr for o in node.ops)], node.ops, strict=False))
        if all(_is_quick(left, operand) for left, operand in pairs):
            super().visit_Compare(node, frame)
            return
        for i, (left, operand) in enumerate(pairs):  # a < b < c is a < b and b < c
            self.write(" and " if i else "(")
            self.write(f"environment.compare(context, {operand.op!r}, ")
            self.visit(left, frame)
            self.write(", ")
            self.visit(operand.expr, frame)
            self.write(")")
        self.write(")")

    @optimizeconst
    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:
        if isinstance(node.arg, nodes.Slice):
            self.write("environment.sliced(context, ")
            super().visit_Getitem(node, frame)
            self.write(")")
        else:
            super().visit_Getitem(node, frame)


def _is_quick(expression: nodes.Expr, operand: nodes.Operand) -> bool:
    """Whether a comparison costs little, whatever its values are."""
    other = operand.expr
    if operand.op in ("in", "notin"):
        return isinstance(other, nodes.List | nodes.Tuple) and all(map(_is_short, other.items))
    return _is_short(expression) or _is_short(other)


def _is_short(node: nodes.Expr) -> bool:
    """Whether a node's value is a short text, a number, or true or false."""
    if isinstance(node, nodes.Const):
        return not isinstance(node.value, str) or len(node.value) < _SHORT
    return isinstance(node, nodes.Compare | nodes.Test | nodes.Not)


class PricedEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, whose operations are paid for from the context's units of work."""

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})
    code_generator_class = _PricedCode
    context_class = WorkContext

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template = super()._parse(source, name, filename)
        _add_prices(template)
        return template

    def getattr(self, obj: Any, attribute: str) -> Any:
        # Jinja's answers for the usual objects, without the exceptions that it raises on the way.
        kind = type(obj)
        if kind is dict and attribute not in _DICT_ATTRIBUTES:
            value = obj.get(attribute, missing)
            return self.undefined(obj=obj, name=attribute) if value is missing else value
        if attribute in _PLAIN_ATTRIBUTES.get(kind, ()):
            return getattr(obj, attribute)
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        if type(argument) is not str:
            key(argument)
        elif type(obj) is dict:
            value = obj.get(argument, missing)
            if value is not missing:
                return value
        return super().getitem(obj, argument)

    def sliced(self, context: WorkContext, value: Any) -> Any:
        """The result of a slice, which is no larger than what it was taken from."""
        if isinstance(value, str):
            context.charge(NODE + len(value))
        elif hasattr(value, "__len__"):
            context.charge(NODE + 8 * len(value))
        return value

    def added(self, context: WorkContext, parts: tuple[Any, ...]) -> Any:
        """`a + b + c`"""
        units = NODE
        for part in parts:
            if type(part) is not str:
                break
            units += len(part)
        else:
            context.left -= units
            if context.left < 0:
                context.refuse()
            return "".join(parts)
        result, *others = parts
        for other in others:
            result = operations.paid(context, result + other)
        return result

    def joined(self, context: WorkContext, parts: tuple[Any, ...]) -> str:
        """`a ~ b ~ c`"""
        for part in parts:
            context.charge_text(part)
        return str_join(parts)

    def compare(self, context: WorkContext, name: str, left: Any, right: Any) -> Any:
        """`left == right` and the like, by Jinja's name of the operator."""
        if type(right) is dict and type(left) is str and name in ("in", "notin"):
            return (left in right) == (name == "in")
        operations.charge_comparison(context, name, left, right)
        return operations.COMPARISONS[name](left, right)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        assert isinstance(context, WorkContext)
        if operator == "%" and isinstance(left, str):
            operations.charge_percent_format(context, left, right)
            return operations.paid(context, left % right)
        if operator == "*":
            for sized, times in ((left, right), (right, left)):
                if hasattr(sized, "__len__"):
                    units = len(sized) if isinstance(sized, str) else 8 * len(sized)
                    context.charge(units * max(0, small(times)))
                    return operations.paid(context, left * right)
        for value in (left, right):
            if not isinstance(value, int | float | Undefined):
                raise Forbidden(f"it computes {operator} with a {type(value).__name__}")
        whole = isinstance(left, int) and isinstance(right, int)
        if operator == "**" and whole and left.bit_length() * max(0, right) > MAX_BITS:
            raise TooMuchWork("it raises a number without end")
        return small(super().call_binop(context, operator, left, right))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Call what a template may call.

        Raises:
            Forbidden: it may not. TooMuchWork: too many macros call one another.
        """
        self, context, called = __self, __context, __obj
        assert isinstance(context, WorkContext)
        context.charge(CALL + NODE * (len(args) + len(kwargs)))
        kind = type(called)
        if kind is Macro:
            return self._call_macro(context, called, args, kwargs)
        kwargs.pop("_loop_vars", None)
        kwargs.pop("_block_vars", None)
        if kind is FunctionType and hasattr(called, "__wrapped__"):  # by wrap_str_format
            form = called.__wrapped__.__self__
            named = args[0] if called.__name__ == "format_map" and args else kwargs
            operations.charge_brace_format(context, form, args, named)
            return operations.paid(context, called(*args, **kwargs))
        if kind is BuiltinMethodType or kind is MethodType:
            method = self._method(called)
            if method is not None:
                return method(context, called.__self__, called, *args, **kwargs)
        elif called in (dict, Namespace):
            args = operations.charge_mapping(context, args, kwargs)
            return called(*args, **kwargs)
        elif kind is Joiner or called is Cycler or called is Joiner or called in self._functions():
            return called(*args, **kwargs)
        elif isinstance(called, Undefined):
            return called()  # says which one it is
        raise Forbidden(f"it calls {_name(called)}, which chat templates may not use")

    def _call_macro(self, context: WorkContext, macro: Macro, args: Any, kwargs: Any) -> Any:
        context.calls += 1
        if context.calls > MAX_CALLS:
            raise TooMuchWork(f"over {MAX_CALLS} macros call one another")
        try:
            return super().call(context, macro, *args, **kwargs)
        finally:
            context.calls -= 1

    def _functions(self) -> tuple[Any, ...]:
        return tuple(self.globals[name] for name in ("range", "raise_exception", "strftime_now"))

    def _method(self, called: Any) -> operations.Method | None:
        owner, name = called.__self__, called.__name__
        if isinstance(owner, str):
            return operations.TEXT_METHODS.get(name)
        if isinstance(owner, list | tuple):
            return operations.LIST_METHODS.get(name)
        if isinstance(owner, dict):
            return operations.MAPPING_METHODS.get(name)
        if isinstance(owner, LoopContext):
            return operations.LOOP_METHODS.get(name)
        return operations.CYCLER_METHODS.get(name) if isinstance(owner, Cycler) else None


def _name(called: Any) -> str:
    return repr(str(getattr(called, "__name__", type(called).__name__))[:40])


def _add_prices(template: nodes.Template) -> None:
    """Put the price of each body at its head.

    Raises:
        Forbidden: the template has something that cannot be priced.
    """
    for node in list(template.find_all(nodes.Node)):
        if isinstance(node, _UNUSABLE):
            raise Forbidden(f"line {node.lineno} has {type(node).__name__.lower()}")
        if isinstance(node, nodes.Const):
            small(node.value)
        elif isinstance(node, nodes.Output):  # constants need no price when they are written
            node.nodes = [
                nodes.TemplateData(n.value, lineno=n.lineno)
                if isinstance(n, nodes.Const) and isinstance(n.value, str)
                else n
                for n in node.nodes
            ]
        elif isinstance(node, nodes.Pair) and not isinstance(node.key, nodes.Const):
            node.key = nodes.Filter(
                node.key, operations.KEY, [], [], None, None, lineno=node.lineno
            )
    # Afterwards, and the outer ones first, so that no price is priced.
    for body in list(template.find_all((nodes.For, nodes.Macro, nodes.CallBlock))):
        assert isinstance(body, nodes.For | nodes.Macro | nodes.CallBlock)
        line, units = body.lineno, nodes.Const(_price(body))
        if isinstance(body, nodes.For):
            if body.recursive:
                raise Forbidden(f"line {line} has a recursive loop")
            if body.test is not None:
                charge = nodes.Filter(units, operations.CHARGE, [], [], None, None, lineno=line)
                body.test = nodes.And(charge, body.test, lineno=line)
        body.body.insert(0, nodes.ExprStmt(units, lineno=line))


def _price(body: nodes.Node) -> int:
    """Units of all nodes in a body, each run once."""
    units = _PER_NODE
    for node in body.find_all(nodes.Node):
        units += _PER_NODE + _HEAVY.get(type(node), 0)
        if isinstance(node, nodes.TemplateData):
            units += len(node.data)
    return units
