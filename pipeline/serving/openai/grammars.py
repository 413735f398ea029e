"""Grammars, in Lark's notation, of answers that are partly free text: tags and tool calls in it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.engines.base import Guide
from pipeline.engines.batching.guided_decoding import with_options
from pipeline.models.chat.renderer import Chat


@dataclass(frozen=True)
class Tagged:
    """What follows a trigger: the rest of the tag's beginning, its content, its end.

    content: a JSON schema; None for any text up to the end.
    """

    begin: str
    content: Mapping[str, Any] | None
    end: str


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


def tags_guide(
    chat: Chat,
    triggers: Mapping[str, Sequence[Tagged]],
    json_whitespace: int = 0,
    *,
    most: int | None = None,
) -> Guide:
    """A guide to free text in which each trigger begins one of its tags.

    Args:
        triggers: tags by the text that begins them, without that text.
        most: tags at most; None for any number.
    """
    lines: list[str] = []
    names: list[str] = []
    for number, (trigger, tags) in enumerate(triggers.items()):
        begin = _trigger(chat, trigger, f"trigger_{number}", lines)
        for place, tag in enumerate(tags):
            name = f"tag_{number}_{place}"
            content, end = _content(tag, name, json_whitespace, lines)
            parts = [begin, *literals(chat, tag.begin), content, *literals(chat, end)]
            lines.append(f"{name}: {' '.join(filter(None, parts))}")
            names.append(name)
    repeat = "*" if most is None else "?" if most == 1 else f"{{0,{most}}}"
    return Guide(
        "lark",
        "\n".join(
            [
                "%llguidance {}",
                f"start: ({' | '.join(names)}){repeat} rest",
                "rest: TEXT",
                "TEXT: /(.|\\n)*/",
                *lines,
            ]
        ),
    )


def _trigger(chat: Chat, trigger: str, name: str, lines: list[str]) -> str:
    """The name of a rule for text up to the trigger, which is added to the lines.

    A control token is no text, so text ends before it. Any other trigger ends the shortest text
    that has it.
    """
    ids = encode(chat, trigger)
    added = chat.tokenizer.get_added_tokens_decoder()
    if ids and ids[0] in added and added[ids[0]].special:
        lines.append(f"{name}: TEXT {' '.join(literals(chat, trigger))}")
    else:
        lines.append(f"{name}[lazy]: TEXT {json.dumps(trigger)}")
    return name


def _content(tag: Tagged, name: str, json_whitespace: int, lines: list[str]) -> tuple[str, str]:
    """The rule for a tag's content, and what is left of its end."""
    if tag.content is not None:
        schema = with_options({**tag.content}, json_whitespace)
        lines.append(f"{name}_json: %json {json.dumps(schema)}")
        return f"{name}_json", tag.end
    if not tag.end:
        return "", ""
    lines.append(f"{name}_text[lazy]: TEXT {json.dumps(tag.end)}")
    return f"{name}_text", ""
