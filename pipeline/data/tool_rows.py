"""Tools, calls and results in rows: the forms of data sets, as OpenAI's.

    tools                     OpenAI; also as JSON text, and functions without a wrapper
    functions                 OpenAI (older)
    tool_calls                a turn of the assistant; arguments as JSON text or as an object
    function_call             the same with one call (older)
    tool, function            roles of a result; the second is older
    function_call, tool_call, observation      roles of a call and a result (ShareGPT)

A row with a wrong tool or call is refused. Calls without an id get one, since some templates write
it, and results without one belong to the calls before them in their order.
"""

import json
from collections.abc import Collection, Mapping
from typing import Any, Protocol

from pipeline.models.chat.messages import Unusable
from pipeline.models.chat.tool_calls import ID_LENGTH, function_call, function_tool

TOOLS = ("tools", "functions")
CALLS = ("tool_calls", "function_call")
BAD_TOOL, BAD_CALL, BAD_RESULT = "bad tool", "bad tool call", "bad tool result"
CALLERS, RESULTS = ("function_call", "tool_call"), ("observation", "function", "tool")


class Fields(Protocol):
    """What is needed of a row's or a turn's fields (row_formats.Fields)."""

    @property
    def values(self) -> Mapping[str, Any]: ...

    @property
    def ignored(self) -> Collection[str]: ...

    @property
    def place(self) -> str: ...

    def take(self, key: str, default: Any = None) -> Any: ...

    def nested(self, values: Mapping[str, Any], place: str) -> "Fields": ...

    def refuse_unused(self) -> None: ...


def parse_tools(fields: Fields) -> list[dict[str, Any]]:
    """The tools of a row, in the form that a server passes to a template.

    Raises:
        Unusable: one of them is not a function with a name, or has a field that no request has.
    """
    given = [key for key in TOOLS if key in fields.values and key not in fields.ignored]
    if len(given) > 1:
        raise Unusable(BAD_TOOL, "the row has tools and functions: keep one of the two", given[1])
    for key in given:
        value = _json(fields.take(key))
        if not isinstance(value, list):
            raise Unusable(BAD_TOOL, f"{key} must be a list", key)
        found = [_tool(one, f"{fields.place}{key}[{i}]", fields) for i, one in enumerate(value)]
        names = [tool["function"]["name"] for tool in found]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise Unusable(BAD_TOOL, f"{key} has two tools of the name {twice!r:.80}", key)
        return found
    return []


def _tool(value: object, place: str, row: Fields) -> dict[str, Any]:
    function = value
    if isinstance(value, dict) and "function" in value:
        outer = row.nested(value, f"{place}.")
        function = outer.take("function")
        if outer.take("type", "function") != "function":
            raise Unusable(BAD_TOOL, f"{place}.type must be function", "type")
        outer.refuse_unused()
        place = f"{place}.function"
    if not isinstance(function, dict):
        raise Unusable(BAD_TOOL, f"{place} must be an object with a name")
    inner = row.nested(function, f"{place}.")
    parts = {key: inner.take(key) for key in ("name", "description", "parameters", "strict")}
    if inner.take("type", "function") != "function":
        raise Unusable(BAD_TOOL, f"{place}.type must be function", "type")
    inner.refuse_unused()
    for key, kind in (("name", str), ("description", str), ("parameters", dict), ("strict", bool)):
        wrong = parts[key] is not None and not isinstance(parts[key], kind)
        if wrong or (key == "name" and not parts[key]):
            raise Unusable(BAD_TOOL, f"{place}.{key} must be {_KINDS[kind]}", key)
    return function_tool(parts)


_KINDS = {str: "a text", dict: "an object (a JSON schema)", bool: "true or false"}


def as_openai(role: Any, content: Any, place: str) -> tuple[Any, Any, list[dict[str, Any]]]:
    """ShareGPT's turns of calls and results: role and content in OpenAI's form, and the calls.

    Raises:
        Unusable: the value of a call is not JSON of one or several calls.
    """
    if not isinstance(role, str):
        return role, content, []
    if role in RESULTS:
        return "tool", _as_text(content), []
    if role not in CALLERS:
        return role, content, []
    value = _json(content)
    calls = value if isinstance(value, list) else [value]
    return "assistant", "", [_call(one, f"{place}.value[{i}]") for i, one in enumerate(calls)]


def _as_text(content: Any) -> Any:
    """A result that is an object, as JSON; some data sets keep results so."""
    return json.dumps(content, ensure_ascii=False) if isinstance(content, dict) else content


def parse_calls(fields: Fields, place: str) -> list[dict[str, Any]]:
    """The calls of a turn.

    Raises:
        Unusable: one has no name, or arguments that are not an object.
    """
    found = []
    for key in CALLS:
        if key not in fields.values or key in fields.ignored:
            continue
        value = fields.take(key)
        calls = value if isinstance(value, list) else [value]
        found += [_call(call, f"{place}.{key}[{i}]") for i, call in enumerate(calls)]
    return found


def _call(value: object, place: str) -> dict[str, Any]:
    function = value.get("function", value) if isinstance(value, dict) else None
    if not isinstance(value, dict) or not isinstance(function, dict):
        raise Unusable(BAD_CALL, f"{place} must be an object with name and arguments")
    if value.get("type", "function") != "function":
        raise Unusable(BAD_CALL, f"{place}.type must be function", "type")
    name = function.get("name")
    given = function.get("arguments", function.get("parameters"))
    arguments = _json(given) if given not in (None, "") else {}
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        raise Unusable(BAD_CALL, f"{place} needs a name, and arguments in a JSON object")
    known = {"id", "type", "function", "index"} if function is not value else {"id", "type"}
    inner = {"name", "arguments", "parameters"}
    extra = set(value) - known - (inner if function is value else set())
    extra |= set(function) - inner - (known if function is value else set())
    if extra:
        raise Unusable(
            BAD_CALL, f"{place}.{min(extra)}: a served call has no such field", min(extra)
        )
    call_id = value.get("id")
    if call_id is not None and not isinstance(call_id, str):
        raise Unusable(BAD_CALL, f"{place}.id must be a text", "id")
    return function_call(name, arguments, call_id or "")


def link(turns: list[Any]) -> None:
    """Give each call an id, and each result that of its call, in place.

    Raises:
        Unusable: a result belongs to no call of the assistant's turn before it, or two to one.
    """
    made = 0
    waiting: list[dict[str, Any]] = []
    for i, turn in enumerate(turns):
        if not isinstance(turn, dict):
            continue
        if turn.get("role") != "tool":
            waiting = []
        for call in turn.get("tool_calls") or ():
            if not call["id"]:
                call["id"] = f"call{made:0{ID_LENGTH - 4}}"
                made += 1
            waiting.append(call)
        if turn.get("role") == "tool":
            given = turn.get("tool_call_id")
            named = [c for c in waiting if given in (None, "", c["id"])]
            name = turn.get("name")
            same = [c for c in named if c["function"]["name"] == name]
            if not named:
                raise Unusable(
                    BAD_RESULT,
                    f"messages[{i}] has tool_call_id {given!r:.60}, and no call that waits for a "
                    "result has that id",
                    "tool_call_id",
                )
            call = same[0] if same and not given else named[0]
            turn["tool_call_id"] = call["id"]
            waiting.remove(call)


def _json(value: Any) -> Any:
    """A value, or what its text means as JSON; None if it is none."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None


def _refuse(name: str) -> Any:
    raise ValueError(name)


def check_called(messages: list[Mapping[str, Any]], tools: list[dict[str, Any]]) -> None:
    """Refuse a call of a tool that the row does not have: a server would never be asked for it.

    Rows without any tools may call: some models know theirs from a system turn.
    """
    names = {tool["function"]["name"] for tool in tools}
    for i, message in enumerate(messages):
        for call in message.get("tool_calls") or ():
            if names and (name := call["function"]["name"]) not in names:
                raise Unusable(
                    BAD_CALL, f"messages[{i}] calls {name!r:.80}, which is not among tools", "tools"
                )
