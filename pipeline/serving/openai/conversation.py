"""The messages of a chat request: text, tool calls and tool results.

The order of turns is not checked here. OpenAI's API leaves it to its models; this server leaves it
to the model's chat template. Training rows are checked more strictly (models/chat/messages.py).
"""

import json
from typing import Any

from pipeline.models.chat.messages import Message, Unusable, parse_turn, text_of


def parse_conversation(value: list[Any]) -> list[Message]:
    """OpenAI's messages in the form that chat templates expect: arguments of calls are objects.

    Raises:
        Unusable: a turn is malformed; the message names it and the reason.
    """
    if not value:
        raise Unusable("no messages", "messages must have at least one turn")
    messages: list[Message] = []
    called: set[str] = set()
    for i, turn in enumerate(value):
        place = f"messages[{i}]"
        role = turn.get("role") if isinstance(turn, dict) else None
        if role == "tool":
            messages.append(_result(turn, place, called))
        elif role == "assistant" and turn.get("tool_calls"):
            calls = _calls(turn["tool_calls"], place)
            called |= {call["id"] for call in calls}
            content = text_of(turn.get("content"), place) or ""
            messages.append({"role": "assistant", "content": content, "tool_calls": calls})
        else:
            messages.append(parse_turn(turn, place))
    return messages


def _calls(value: Any, place: str) -> list[dict[str, Any]]:
    calls = []
    for i, call in enumerate(value if isinstance(value, list) else [None]):
        where = f"{place}.tool_calls[{i}]"
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(call.get("id"), str):
            raise Unusable("bad tool call", f"{where} must be an object with id and function")
        name = function.get("name")
        try:
            arguments = json.loads(function.get("arguments") or "{}")
        except (TypeError, ValueError, RecursionError):
            arguments = None
        if not isinstance(name, str) or not isinstance(arguments, dict):
            raise Unusable(
                "bad tool call", f"{where}.function needs a name, and arguments in a JSON object"
            )
        called = {"name": name, "arguments": arguments}
        calls.append({"id": call["id"], "type": "function", "function": called})
    return calls


def _result(turn: dict[str, Any], place: str, called: set[str]) -> Message:
    call = turn.get("tool_call_id")
    if not isinstance(call, str) or call not in called:
        raise Unusable(
            "bad tool result",
            f"{place} has tool_call_id {call!r}, but no earlier assistant turn has that call",
        )
    content = text_of(turn.get("content"), place) or ""
    name = turn.get("name")
    named = {"name": name} if isinstance(name, str) else {}
    return {"role": "tool", "content": content, "tool_call_id": call, **named}
