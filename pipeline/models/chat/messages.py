"""Messages in OpenAI's form, and the conversations that are allowed."""

from collections.abc import Mapping
from typing import Any

from pipeline.core.errors import DataError

# role and content are text; weight 0 marks an assistant turn that is context, not to be trained on.
# tool_calls of an assistant turn are in OpenAI's form, with arguments as objects. A turn of the
# role tool is the result of the call that tool_call_id names.
Message = Mapping[str, Any]

ROLES = ("system", "user", "assistant", "tool")
PLAIN = "text"  # of the only turn of a row that is plain text and no conversation
# Fields of a turn that have an effect only if the model's chat template writes them.
THOUGHT_FIELDS = ("reasoning_content", "reasoning", "thinking")
TEMPLATE_FIELDS = (*THOUGHT_FIELDS, "name")


class Unusable(DataError):
    """A conversation that cannot be used.

    reason: one of a few fixed phrases, for counting.
    field: the field of the data that is the reason, if it is one field.
    """

    def __init__(self, reason: str, detail: str, field: str | None = None) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.field = field


def parse_messages(value: object, *, answered: bool) -> list[Message]:
    """OpenAI messages as turns of text.

    Results follow an assistant's turn that calls tools, and the assistant follows them. In which
    order the others may speak is for the model's chat template to say, as it is in a request: a
    conversation may begin with a greeting, or have two turns of the user in a row.

    Args:
        value: decoded JSON. `content` may be a string or a list of text parts, and the role
            `developer` is `system`. Calls are as in Message.
        answered: whether the last turn must be the assistant's (a training row) or the user's
            (a prompt).

    Raises:
        Unusable: which turn is wrong, and why.
    """
    if not isinstance(value, list) or not value:
        raise Unusable("no messages", "messages must be a list of at least one turn")
    turns = [parse_turn(turn, f"messages[{i}]") for i, turn in enumerate(value)]
    for i, turn in enumerate(turns):
        if turn["role"] != "tool" and not (turn["content"].strip() or turn.get("tool_calls")):
            raise _empty(turn["role"], f"messages[{i}]")
    previous: Message = {}
    for i, turn in enumerate(turns):
        if (fault := _misplaced(previous, turn["role"])) is not None:
            raise Unusable(
                "roles out of order", f"messages[{i}] is {turn['role']}, should be {fault}"
            )
        previous = turn
    last = "assistant" if answered else "user"
    if turns[-1]["role"] != last:
        reason = "no assistant turn" if answered else "no user turn"
        raise Unusable(reason, f"the last turn must be the {last}'s")
    if not any(turn["role"] == "user" for turn in turns):
        raise Unusable("no user turn", "nobody asks for the answer: put a user's turn before it")
    return turns


def _misplaced(previous: Message, role: str) -> str | None:
    """Who should speak behind a turn, if a role may not; else None."""
    if previous.get("tool_calls"):
        return None if role == "tool" else "tool"
    if previous.get("role") == "tool":
        return None if role in ("tool", "assistant") else "assistant or tool"
    return "user or assistant: it answers no call" if role == "tool" else None


def parse_turn(turn: object, place: str) -> Message:
    """One turn of text; the assistant's may be empty, since a model can answer with nothing, and a
    tool's.

    Raises:
        Unusable: why it is not one; `place` says where it is.
    """
    if not isinstance(turn, dict):
        raise Unusable("bad message", f"{place} is not an object with role and content")
    role, content = turn.get("role"), turn.get("content")
    if role == "developer":
        role = "system"
    if role not in ROLES:
        shown = f"{role!r:.40}"
        raise Unusable("unknown role", f"{place} has role {shown}; allowed: {', '.join(ROLES)}")
    content = text_of(content, place)
    if content is None and (role == "tool" or turn.get("tool_calls")):
        content = ""
    if content is None or (role not in ("assistant", "tool") and not content.strip()):
        raise _empty(role, place)
    weight = turn.get("weight", 1)
    if weight not in (0, 1):
        raise Unusable("bad message", f"{place} has weight {weight!r:.40}; allowed: 0 and 1")
    turned = {"role": role, "content": content}
    fields = {"assistant": ("tool_calls",), "tool": ("tool_call_id", "name")}.get(role, ())
    turned |= {field: turn[field] for field in fields if turn.get(field)}
    return turned if weight else {**turned, "weight": 0}


def _empty(role: str, place: str) -> Unusable:
    return Unusable(f"empty {role} turn", f"{place} has no text")


def text_of(content: object, place: str) -> str | None:
    """A turn's content, given as text or as a list of text parts; None if there is none.

    Raises:
        Unusable: it is something else.
    """
    if isinstance(content, list):
        parts = [
            p.get("text") if isinstance(p, dict) and p.get("type") == "text" else None
            for p in content
        ]
        if not all(isinstance(part, str) for part in parts):
            raise Unusable("not text", f"{place} has a part that is not text")
        content = "".join(str(part) for part in parts)
    if content is not None and not isinstance(content, str):
        kind = {"int": "a number", "float": "a number", "bool": "true or false",
                "bytes": "bytes"}.get(type(content).__name__, "an object")  # fmt: skip
        raise Unusable("not text", f"{place} has content that is not text but {kind}")
    if content is not None and not _is_unicode(content):
        raise Unusable("bad Unicode", f"{place} holds half a surrogate pair")
    return content


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
