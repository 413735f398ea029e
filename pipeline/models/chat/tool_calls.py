"""Tools and calls of them, in the one form that training, evaluation and serving have in common:
OpenAI's, with the arguments of a call as an object."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from pipeline.models.chat.messages import Message

# Letters and digits of a call's id: Mistral's templates require nine.
ID_LENGTH = 9


def function_tool(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A tool from its function's fields, in the order in which a server passes them to a template.

    Order matters: templates write a tool as JSON.
    """
    names = ("name", "description", "parameters", "strict")
    function = {name: fields[name] for name in names if fields.get(name) is not None}
    return {"type": "function", "function": function}


def function_call(name: str, arguments: Mapping[str, Any], call_id: str) -> dict[str, Any]:
    """A call, as chat templates expect it."""
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def names_of(things: Iterable[Mapping[str, Any]] | None) -> list[str]:
    """Names of the functions of tools or calls."""
    return [thing["function"]["name"] for thing in things or ()]


def said(message: Message) -> str:
    """What a turn says, as one text: its content, and each call on a line of its own.

    Two turns with the same text and the same calls give the same text, whatever ids the calls have
    and in whichever order the arguments are.
    """
    parts = [message["content"]] if message["content"] or not message.get("tool_calls") else []
    for call in message.get("tool_calls") or ():
        function = call["function"]
        named = {"name": function["name"], "arguments": function["arguments"]}
        parts.append(json.dumps(named, sort_keys=True, ensure_ascii=False))
    return "\n".join(parts)


def as_request(message: Message) -> dict[str, Any]:
    """A turn as a request has it: without what only training knows, arguments as JSON text."""
    turn = {k: v for k, v in message.items() if k != "weight"}
    if calls := turn.get("tool_calls"):
        turn["tool_calls"] = [
            {
                **call,
                "function": {
                    **call["function"],
                    "arguments": _as_text(call["function"]["arguments"]),
                },
            }
            for call in calls
        ]
    return turn


def _as_text(arguments: Mapping[str, Any] | str) -> str:
    if isinstance(arguments, str):
        return arguments
    return json.dumps(arguments, ensure_ascii=False)
