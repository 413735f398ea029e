"""How many lines of code something takes: without comments, docstrings and blank lines."""

import ast
import inspect
import io
import textwrap
import tokenize
from collections.abc import Callable
from types import ModuleType

SILENT = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}


def code_lines(*things: ModuleType | type | Callable[..., object]) -> int:
    """Of modules, classes and functions together."""
    return sum(_of_text(textwrap.dedent(inspect.getsource(thing))) for thing in things)


def _of_text(text: str) -> int:
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in SILENT:
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                lines -= set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    return len(lines)
