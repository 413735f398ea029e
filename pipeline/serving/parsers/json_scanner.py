"""A scanner of one JSON value that comes in pieces: strict, and without building the value."""

import json
import re

_SCALAR = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?|true|false|null")
_SCALAR_CHARACTERS = frozenset("+-.0123456789eEtrufalsn")
_ESCAPES = frozenset('"\\/bfnrtu')
_SPACE = frozenset(" \t\n\r")
# What may come next.
_VALUE, _FIRST_VALUE, _KEY, _FIRST_KEY, _COLON, _AFTER = range(6)
MOST_DEPTH = 200


class JsonScanner:
    """
    Attributes:
        done: whether the value is complete. wrong: whether it is no JSON.
    """

    def __init__(self) -> None:
        self.done = self.wrong = False
        self._next = _VALUE
        self._stack: list[str] = []
        self._in_string = self._escaped = self._is_key = False
        self._scalar = ""

    def push(self, text: str) -> int:
        """Read characters. Returns how many belong to the value."""
        for at, character in enumerate(text):
            if not self._step(character):
                return at
            if self.done:
                return at + 1
        return len(text)

    def end(self) -> bool:
        """Whether the value is complete if nothing follows."""
        if not self.done and not self._stack and _SCALAR.fullmatch(self._scalar):
            self.done = True
        return self.done

    def _step(self, character: str) -> bool:
        """Read one character. False if it does not belong to the value."""
        if self._in_string:
            return self._step_in_string(character)
        if self._scalar or (
            self._next in (_VALUE, _FIRST_VALUE) and character in _SCALAR_CHARACTERS
        ):
            if character in _SCALAR_CHARACTERS:
                self._scalar += character
                return True
            if not _SCALAR.fullmatch(self._scalar):
                self.wrong = True
                return False
            self._scalar = ""
            if self._end_value():
                return False
        if character in _SPACE:
            return True
        return self._step_structure(character)

    def _step_in_string(self, character: str) -> bool:
        if self._escaped:
            self._escaped = False
            self.wrong = character not in _ESCAPES
        elif character == "\\":
            self._escaped = True
        elif character == '"':
            self._in_string = False
            if self._is_key:
                self._is_key, self._next = False, _COLON
            else:
                self._end_value()
        elif character < " ":
            self.wrong = True
        return not self.wrong

    def _step_structure(self, character: str) -> bool:
        expected = self._next
        if character == '"' and expected in (_VALUE, _FIRST_VALUE, _KEY, _FIRST_KEY):
            self._in_string, self._is_key = True, expected in (_KEY, _FIRST_KEY)
        elif character in "{[" and expected in (_VALUE, _FIRST_VALUE):
            self._stack.append(character)
            self._next = _FIRST_KEY if character == "{" else _FIRST_VALUE
            self.wrong = len(self._stack) > MOST_DEPTH
        elif character == ":" and expected == _COLON:
            self._next = _VALUE
        elif character == "," and expected == _AFTER:
            self._next = _KEY if self._stack[-1] == "{" else _VALUE
        elif (
            self._stack
            and character == ("}" if self._stack[-1] == "{" else "]")
            and expected in (_AFTER, _FIRST_KEY, _FIRST_VALUE)
        ):
            self._stack.pop()
            self._end_value()
        else:
            self.wrong = True
        return not self.wrong

    def _end_value(self) -> bool:
        self._next = _AFTER
        self.done = not self._stack
        return self.done


def as_arguments(text: str) -> str | None:
    """Arguments in JSON, from their text or from a text in JSON that holds it; None for neither."""
    try:
        value = json.loads(text, parse_constant=_no_number)
        if isinstance(value, str):
            text = value
            value = json.loads(value, parse_constant=_no_number)
    except (ValueError, RecursionError):
        return None
    return text if isinstance(value, dict) else None


def encodable(text: str) -> str:
    """Replaces halves of surrogate pairs, which JSON escapes can produce, by question marks."""
    return text.encode(errors="replace").decode()


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is not JSON")
