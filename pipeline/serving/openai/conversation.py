"""The messages of a chat request: text, tool calls and tool results.

The order of turns is not checked here, nor is an empty turn refused. OpenAI's API leaves both to
its models; this server leaves them to the model's chat template. Training rows are checked more
strictly (models/chat/messages.py).
"""

import json
from collections.abc import Collection
from typing import Any

from pipeline.models.chat.messages import TEMPLATE_FIELDS, Message, Unusable, text_of

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
TEXT_PARTS = {
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    "refusal": "refusal",
}
REASONING = ("reasoning_content", "reasoning", "thinking")


def parse_conversation(value: list[Any], fields: Collection[str] = ()) -> list[Message]:
    """OpenAI's messages in the form that chat templates expect: arguments of calls are objects.

    Args:
        fields: fields of a turn beside role and content that the model's template reads. Others
            are left out.

    Raises:
        Unusable: a turn is malformed; the message names it and the reason.
    """
    if not value:
        raise Unusable("no messages", "messages must have at least one turn")
    messages: list[Message] = []
    called: list[str] = []  # ids, in the order of the calls
    for i, turn in enumerate(value):
        place = f"messages[{i}]"
        if not isinstance(turn, dict):
            raise Unusable("bad message", f"{place} is not an object with role and content")
        role = turn.get("role")
        if role == "tool":
            messages.append(_result(turn, place, called))
        elif role == "function":
            messages.append(_function_result(turn, place, called))
        elif role == "assistant":
            messages.append(_answer(turn, place, called, fields))
        else:
            messages.append(_turn(turn, place, fields))
    return messages


def _turn(turn: dict[str, Any], place: str, fields: Collection[str]) -> Message:
    role = turn.get("role")
    if not isinstance(role, str) or role not in ROLES:
        shown = f"{role!r:.40}"
        allowed = ", ".join([*ROLES, "tool", "function"])
        raise Unusable("unknown role", f"{place} has role {shown}; allowed: {allowed}")
    message = {"role": ROLES[role], "content": content_of(turn.get("content"), place)}
    name = turn.get("name")
    if "name" in fields and isinstance(name, str):
        message["name"] = name
    return message


def _answer(
    turn: dict[str, Any], place: str, called: list[str], fields: Collection[str]
) -> Message:
    message = dict(_turn(turn, place, fields))
    refusal = turn.get("refusal")
    if not message["content"] and isinstance(refusal, str):
        message["content"] = content_of(refusal, place)
    thought = next((turn[name] for name in REASONING if isinstance(turn.get(name), str)), None)
    if thought:
        thought = text_of(thought, place)
        message |= {name: thought for name in REASONING if name in fields}
    if turn.get("weight", 1) not in (0, 1):
        raise Unusable(
            "bad message", f"{place} has weight {turn['weight']!r:.40}; allowed: 0 and 1"
        )
    calls = []
    if turn.get("tool_calls"):
        calls = _calls(turn["tool_calls"], place)
    elif turn.get("function_call"):  # OpenAI's earlier form, without an id
        call = {"id": f"call{len(called):05}", "function": turn["function_call"]}
        calls = _calls([call], place)
    if calls:
        called += [call["id"] for call in calls]
        message["tool_calls"] = calls
    return message


def content_of(content: Any, place: str) -> str:
    """A turn's text: a string, or a list of strings, text parts and refusals; "" for null.

    Raises:
        Unusable: it is something else, such as an image.
    """
    if isinstance(content, list):
        content = "".join(_part(part, place) for part in content)
    return text_of(content, place) or ""


def _part(part: Any, place: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else None
    text = part.get(TEXT_PARTS[kind]) if isinstance(kind, str) and kind in TEXT_PARTS else None
    if not isinstance(text, str):
        shown = f" ({kind!r:.40})" if isinstance(kind, str) and kind not in TEXT_PARTS else ""
        raise Unusable("not text", f"{place} has a part that is not text{shown}")
    return text


def _calls(value: Any, place: str) -> list[dict[str, Any]]:
    calls = []
    for i, call in enumerate(value if isinstance(value, list) else [None]):
        where = f"{place}.tool_calls[{i}]"
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(call.get("id"), str):
            raise Unusable("bad tool call", f"{where} must be an object with id and function")
        name = function.get("name")
        arguments = function.get("arguments") or {}
        try:
            if not isinstance(arguments, dict):  # some clients send back what they have parsed
                arguments = json.loads(arguments)
        except (TypeError, ValueError, RecursionError):
            arguments = None
        if not isinstance(name, str) or not isinstance(arguments, dict):
            raise Unusable(
                "bad tool call", f"{where}.function needs a name, and arguments in a JSON object"
            )
        called = {"name": name, "arguments": arguments}
        calls.append({"id": call["id"], "type": "function", "function": called})
    return calls


def _result(turn: dict[str, Any], place: str, called: list[str]) -> Message:
    call = turn.get("tool_call_id")
    if not isinstance(call, str) or call not in called:
        raise Unusable(
            "bad tool result",
            f"{place} has tool_call_id {call!r:.80}, but no earlier assistant turn has that call",
        )
    return _tool_turn(turn, place, call)


def _function_result(turn: dict[str, Any], place: str, called: list[str]) -> Message:
    """A result in OpenAI's earlier form, which names the function and belongs to the last call."""
    if not isinstance(turn.get("name"), str) or not called:
        raise Unusable(
            "bad function result",
            f"{place} needs the name of a function that an earlier assistant turn calls",
        )
    return _tool_turn(turn, place, called[-1])


def _tool_turn(turn: dict[str, Any], place: str, call: str) -> Message:
    content, name = content_of(turn.get("content"), place), turn.get("name")
    named = {"name": name} if isinstance(name, str) else {}
    return {"role": "tool", "content": content, "tool_call_id": call, **named}


def fields_read(template: str) -> frozenset[str]:
    """The fields of a turn, beside role and content, that a template reads."""
    return frozenset(name for name in TEMPLATE_FIELDS if name in template)
