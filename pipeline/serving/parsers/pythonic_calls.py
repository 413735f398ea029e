"""Calls as a list of calls in Python: Llama 3.2, Llama 4 and others."""

import ast
import json
import re
from collections.abc import Generator
from typing import Any

from pipeline.serving.parsers.events import Event, Parsing, Source, Text

_NAME = re.compile(r"\s*([A-Za-z_][\w.-]*)\s*\(")
_NAME_BEGUN = re.compile(r"\s*([A-Za-z_][\w.-]*)?\s*")
_OPENINGS = ("<|python_start|>", "<|python_tag|>")
_CLOSING = "<|python_end|>"
_JSON_NAMES = {"true": True, "false": False, "null": None}
MOST_CHARACTERS = 1 << 18  # of one call


def pythonic_calls(source: Source) -> Parsing:
    """A parser of `[f(a=1), g(b="x")]`, which can only begin an answer; each call when it is
    complete."""
    yield from source.skip(*_OPENINGS)
    if not (yield from source.starts("[")):
        yield from source.rest()
        return
    source.text = source.text.lstrip()
    left = yield from source.attempt(_calls(source))
    if left is not None:
        if left:
            yield Text(left)
        yield from source.rest()
        return
    yield from source.skip(_CLOSING)
    yield from source.skip_space()
    yield from source.rest()


def _calls(source: Source) -> Generator[Event | None, None, str | None]:
    seen, calls = source.take(1), source.calls
    while True:
        found = yield from _next_call(source)
        if found is None:
            return "" if source.calls > calls else seen
        name, arguments = found
        yield from source.call(name, arguments)
        if (yield from source.skip("]")):
            return None
        if not (yield from source.skip(",")):
            return ""


def _next_call(source: Source) -> Generator[None, None, tuple[str, str] | None]:
    """The name and the arguments of a call that comes next; None if none does."""
    while not (begun := _NAME.match(source.text)):
        if source.ended or not _NAME_BEGUN.fullmatch(source.text):
            return None
        yield
    while (end := _end_of_call(source.text, begun.end())) is None:
        if source.ended or len(source.text) > MOST_CHARACTERS:
            return None
        yield
    arguments = _arguments(source.text[begun.end() : end - 1])
    if arguments is None:
        return None
    source.take(end)
    return begun[1], arguments


def _end_of_call(text: str, begin: int) -> int | None:
    """Where the parenthesis that is open at `begin` is closed; None if it is not yet."""
    depth, quote, escaped = 1, "", False
    for at in range(begin, len(text)):
        character = text[at]
        if quote:
            if escaped:
                escaped = False
            elif character == "\\":
                escaped = True
            elif character == quote:
                quote = ""
        elif character in "\"'":
            quote = character
        elif character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
            if depth == 0:
                return at + 1
    return None


def _arguments(text: str) -> str | None:
    """Keyword arguments with constant values, in JSON; None if they are something else."""
    try:
        call = ast.parse(f"f({text})", mode="eval").body
        if not isinstance(call, ast.Call) or call.args:
            return None
        values = {word.arg: _constant(word.value) for word in call.keywords if word.arg}
        return json.dumps(values, ensure_ascii=False, allow_nan=False)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return None


def _constant(node: ast.expr) -> Any:
    """
    Raises:
        ValueError: it is not constant.
    """
    if isinstance(node, ast.Name) and node.id in _JSON_NAMES:
        return _JSON_NAMES[node.id]
    if isinstance(node, ast.List | ast.Tuple):
        return [_constant(item) for item in node.elts]
    if isinstance(node, ast.Dict):
        keys = [_constant(key) if key else None for key in node.keys]
        return dict(zip(keys, map(_constant, node.values), strict=True))
    return ast.literal_eval(node)
