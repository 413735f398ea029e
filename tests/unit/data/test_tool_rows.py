"""Tools, calls and results of every known form mean the same; what is wrong is refused."""

import json
from typing import Any

import pytest

from pipeline.data.preference_rows import parse_example as parse
from pipeline.data.tool_rows import BAD_CALL, BAD_RESULT, BAD_TOOL
from pipeline.models.chat.messages import Unusable

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}}
FUNCTION = {"name": "weather", "description": "Weather of a city", "parameters": PARAMETERS}
TOOLS = [{"type": "function", "function": FUNCTION}]
ARGUMENTS = {"city": "Köln"}
USER = {"role": "user", "content": "How warm is it in Köln?"}
ANSWER = {"role": "assistant", "content": "7 degrees."}


def call(call_id: str = "call00000", arguments: Any = ARGUMENTS) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": "weather",
                                                            "arguments": arguments}}  # fmt: skip


def calling(*calls: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": "", "tool_calls": list(calls), **more}


def result(text: str = "7", call_id: str | None = "call00000", **more: Any) -> dict[str, Any]:
    named = {"tool_call_id": call_id} if call_id else {}
    return {"role": "tool", "content": text, **named, **more}


TALK = [USER, calling(call()), result(), ANSWER]
SHAREGPT = [
    {"from": "human", "value": USER["content"]},
    {"from": "function_call", "value": json.dumps({"name": "weather", "arguments": ARGUMENTS})},
    {"from": "observation", "value": "7"},
    {"from": "gpt", "value": ANSWER["content"]},
]
BARE = {"name": "weather", "arguments": ARGUMENTS}
FORMS: list[dict[str, Any]] = [
    {"messages": TALK, "tools": TOOLS},
    {"messages": TALK, "tools": json.dumps(TOOLS), "parallel_tool_calls": False},
    {"messages": TALK, "tools": [FUNCTION]},
    {"messages": TALK, "functions": [FUNCTION]},
    {"messages": [USER, calling(call(arguments=json.dumps(ARGUMENTS))), result(), ANSWER],
     "tools": TOOLS},
    {"messages": [USER, {**calling(call()), "content": None}, result(), ANSWER], "tools": TOOLS},
    {"messages": [USER, {"role": "assistant", "function_call": BARE},
                  {"role": "function", "content": "7"}, ANSWER], "functions": [FUNCTION]},
    {"messages": [USER, calling(BARE), result(call_id=None), ANSWER], "tools": TOOLS},
    {"conversations": SHAREGPT, "tools": json.dumps([FUNCTION])},
    {"prompt": TALK[:-1], "completion": [ANSWER], "tools": TOOLS},
]  # fmt: skip


@pytest.mark.parametrize("row", FORMS)
def test_every_form_gives_the_same_conversation(row: dict[str, Any]) -> None:
    parsed = parse(row)
    plain = [{k: v for k, v in m.items() if k != "weight"} for m in parsed.messages]
    assert plain == TALK
    assert parsed.tools == TOOLS
    assert list(parsed.tools[0]["function"]) == ["name", "description", "parameters"]


def test_calls_at_once_and_their_results_belong_together() -> None:
    two = calling(call("a"), {**call("b"), "function": {"name": "news", "arguments": "{}"}})
    # The names say which result is whose; without any sign, the order does.
    named = [result("n", None, name="news"), result("w", None, name="weather")]
    parsed = parse({"messages": [USER, two, *named, ANSWER]})
    assert [m["tool_call_id"] for m in parsed.messages if m["role"] == "tool"] == ["b", "a"]
    ordered = [result("w", None), result("n", None)]
    parsed = parse({"messages": [USER, two, *ordered, ANSWER]})
    assert [m["tool_call_id"] for m in parsed.messages if m["role"] == "tool"] == ["a", "b"]


def test_a_row_may_end_with_a_call_and_a_pair_may_prefer_one() -> None:
    assert parse({"messages": [USER, calling(call())], "tools": TOOLS}).messages[-1]["tool_calls"]
    pair = {"input": {"messages": [USER], "tools": TOOLS, "parallel_tool_calls": True},
            "preferred_output": [calling(call())], "non_preferred_output": [ANSWER]}  # fmt: skip
    parsed = parse(pair, kind="pairs")
    assert parsed.messages == [USER, calling(call())]
    assert parsed.rejected == [USER, ANSWER]
    assert parsed.tools == TOOLS


@pytest.mark.parametrize(
    ("row", "reason", "place"),
    [
        ({"messages": TALK, "tools": [{}]}, BAD_TOOL, "tools[0].name"),
        ({"messages": TALK, "tools": "weather"}, BAD_TOOL, "tools must be a list"),
        ({"messages": TALK, "tools": TOOLS, "functions": [FUNCTION]}, BAD_TOOL, "functions"),
        ({"messages": TALK, "tools": [*TOOLS, *TOOLS]}, BAD_TOOL, "two tools"),
        ({"messages": TALK, "tools": [{**FUNCTION, "parameters": []}]}, BAD_TOOL, "parameters"),
        ({"messages": TALK, "tools": [{**FUNCTION, "returns": {"x": 1}}]}, "unused field",
         "tools[0].returns"),
        ({"messages": TALK, "tools": [{**FUNCTION, "name": "news"}]}, BAD_CALL, "'weather'"),
        ({"messages": [USER, calling({"name": "weather"}, 3), ANSWER]}, BAD_CALL, "tool_calls[1]"),
        ({"messages": [USER, calling(call(arguments="[1")), result()]}, BAD_CALL, "arguments"),
        ({"messages": [USER, calling({**call(), "custom": {}})]}, BAD_CALL, "custom"),
        ({"messages": [USER, calling(call()), result(call_id="x"), ANSWER]}, BAD_RESULT, "'x'"),
        ({"messages": [USER, calling(call()), result(), result(), ANSWER]}, BAD_RESULT,
         "messages[3]"),
        ({"messages": [USER, calling(call()), ANSWER]}, "roles out of order", "should be tool"),
        ({"messages": [USER, {**USER, "tool_calls": [call()]}]}, "unused field", "tool_calls"),
        ({"conversations": [SHAREGPT[0], {"from": "function_call", "value": "weather()"}]},
         BAD_CALL, "value[0]"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_refused_by_its_place(
    row: dict[str, Any], reason: str, place: str
) -> None:
    with pytest.raises(Unusable) as caught:
        parse(row)
    assert caught.value.reason == reason
    assert place in str(caught.value)


def test_fields_to_ignore_leave_tools_and_calls_out() -> None:
    row = {"messages": [USER, {**ANSWER, "tool_calls": [call()]}], "tools": TOOLS}
    parsed = parse(row, ignored=["tools", "tool_calls"])
    assert parsed.messages == [USER, ANSWER]
    assert not parsed.tools
    assert parsed.left_out == {"tools", "tool_calls"}
