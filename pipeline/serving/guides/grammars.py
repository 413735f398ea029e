"""Grammars, in Lark's notation, of answers that are partly free text: tags and tool calls in it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from pipeline.engines.base import Guide
from pipeline.engines.batching.guided_decoding import with_options
from pipeline.models.chat.renderer import Chat


@dataclass(frozen=True)
class TextUntil:
    """Any text up to an end, which belongs to it."""

    end: str


@dataclass(frozen=True)
class Optional:
    """Parts that may be left out."""

    parts: "Sequence[Part]"


@dataclass(frozen=True)
class OneOf:
    """One of several texts."""

    texts: Sequence[str]


# A text as it is, a JSON schema, or one of the above.
Part = str | Mapping[str, Any] | TextUntil | Optional | OneOf


class _Rules:
    """The rules of one grammar."""

    def __init__(self, chat: Chat, json_whitespace: int) -> None:
        self.chat, self.json_whitespace = chat, json_whitespace
        self.lines: list[str] = []
        self._numbers: Iterator[int] = count()

    def sequence(self, parts: Sequence[Part]) -> str:
        """An expression for parts that follow one another."""
        return " ".join(filter(None, map(self._part, parts)))

    def _part(self, part: Part) -> str:
        if isinstance(part, str):
            return " ".join(literals(self.chat, part))
        if isinstance(part, TextUntil):
            return self.add(f"[lazy]: TEXT {json.dumps(part.end)}")
        if isinstance(part, Optional):
            return f"({self.sequence(part.parts)})?"
        if isinstance(part, OneOf):
            return f"({' | '.join(json.dumps(text) for text in part.texts)})"
        return self.add(f": %json {json.dumps(with_options({**part}, self.json_whitespace))}")

    def add(self, rule: str) -> str:
        """The name of a new rule."""
        name = f"part_{next(self._numbers)}"
        self.lines.append(name + rule)
        return name

    def guide(self, start: str) -> Guide:
        lines = ["%llguidance {}", f"start: {start}", "TEXT: /(.|\\n)*/", *self.lines]
        return Guide("lark", "\n".join(lines) + "\n")


def call_guide(chat: Chat, calls: Sequence[Sequence[Part]], json_whitespace: int = 0) -> Guide:
    """A guide to exactly one of these sequences of parts."""
    rules = _Rules(chat, json_whitespace)
    return rules.guide(" | ".join(rules.add(f": {rules.sequence(parts)}") for parts in calls))


def tags_guide(
    chat: Chat,
    tags: Sequence[tuple[str, Sequence[Part]]],
    json_whitespace: int = 0,
    *,
    most: int | None = None,
) -> Guide:
    """A guide to free text in which each trigger begins one of its tags.

    Args:
        tags: what begins each, and the parts that follow.
        most: tags at most; None for any number.
    """
    rules = _Rules(chat, json_whitespace)
    triggers: dict[str, str] = {}
    names = []
    for trigger, parts in tags:
        if trigger not in triggers:
            triggers[trigger] = rules.add(_after_text(chat, trigger))
        names.append(rules.add(f": {triggers[trigger]} {rules.sequence(parts)}"))
    repeat = "*" if most is None else "?" if most == 1 else f"{{0,{most}}}"
    return rules.guide(f"({' | '.join(names)}){repeat} {rules.add(': TEXT')}")


def first_or_text_guide(
    chat: Chat, calls: Sequence[Sequence[Part]], json_whitespace: int = 0
) -> Guide:
    """A guide to one of these sequences, or to text that does not begin as JSON does."""
    rules = _Rules(chat, json_whitespace)
    names = [rules.add(f": {rules.sequence(parts)}") for parts in calls]
    return rules.guide(" | ".join([*names, rules.add(r": /([^\s{\[](.|\n)*)?/")]))


def _after_text(chat: Chat, trigger: str) -> str:
    """The rule of text up to a trigger.

    An added token is no text, so text ends before it. Any other trigger ends the shortest text that
    has it.
    """
    ids = encode(chat, trigger)
    if ids and ids[0] in chat.tokenizer.get_added_tokens_decoder():
        return f": TEXT {' '.join(literals(chat, trigger))}"
    return f"[lazy]: TEXT {json.dumps(trigger)}"


def literals(chat: Chat, text: str) -> list[str]:
    """A text as parts of a Lark rule, in which added tokens are written by their ids."""
    added = chat.tokenizer.get_added_tokens_decoder()
    parts: list[str] = []
    plain: list[int] = []
    for token in [*encode(chat, text), None]:
        if token is None or token in added:
            if plain:
                parts.append(json.dumps(chat.decode(plain)))
            parts += [] if token is None else [f"<[{token}]>"]
            plain = []
        else:
            plain.append(token)
    return parts


def encode(chat: Chat, text: str) -> list[int]:
    return list(chat.tokenizer.encode(text, add_special_tokens=False).ids)
