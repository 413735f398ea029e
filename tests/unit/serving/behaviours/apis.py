"""Tool calls and thoughts, the Responses API, and Anthropic's Messages API."""

import json
from typing import Any

from tests.unit.serving.behaviours.case import HELLO, Case, Check, Reply, ok, refused

R = "400"
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"


def tool(name: str, **more: Any) -> dict[str, Any]:
    town = {"type": "object", "properties": {"town": {"enum": ["Rome"]}}, "required": ["town"],
            "additionalProperties": False}  # fmt: skip
    return {"type": "function", "function": {"name": name, "parameters": town, **more}}


TOOLS = [tool("weather"), tool("pay")]
NAMED = {"type": "function", "function": {"name": "weather"}}
ALLOWED = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [NAMED]}}
MUST = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [NAMED]}}


def _calls(reply: Reply) -> list[Any]:
    return reply.message.get("tool_calls") or []


def called(reply: Reply) -> bool:
    (call,) = _calls(reply)
    return json.loads(call["function"]["arguments"]) == {"town": "Rome"}


def streamed(reply: Reply) -> bool:
    """A call comes as its name, and then its arguments."""
    deltas = [e["choices"][0]["delta"] for e in reply.events if e["choices"]]
    first, *rest = [call for d in deltas for call in d.get("tool_calls", [])]
    pieces = [call["function"]["arguments"] for call in rest]
    return first["function"]["name"] in ("weather", "pay") and json.loads("".join(pieces)) == {
        "town": "Rome"
    }


def ends(reason: str) -> Check:
    return lambda reply: reply.choice["finish_reason"] == reason


def calls(name: str, body: dict[str, Any], check: Check, *more: str, **named: Any) -> Case:
    """A case whose model calls the weather in Rome."""
    given = {"tools": TOOLS, "max_tokens": 60, **body}
    return Case(name, given, check, *more, app="calling", **named)


def response(name: str, body: dict[str, Any], check: Check = ok, *more: str, **named: Any) -> Case:
    named = {"path": RESPONSES, "app": "hermes", **named}
    return Case(name, {"input": "Hello", **body}, check, *more, **named)


def message(name: str, body: dict[str, Any], check: Check = ok, *more: str, **named: Any) -> Case:
    named = {"path": MESSAGES, "app": "hermes", **named}
    return Case(name, {"max_tokens": 90, "messages": HELLO, **body}, check, *more, **named)


def failed(kind: str, words: str = "") -> Check:
    """An error in Anthropic's format."""
    return lambda r: (
        (r.json["type"], r.json["error"]["type"]) == ("error", kind)
        and (words in r.json["error"]["message"])
    )


def kinds(*expected: str) -> Check:
    """A stream of these types of events, and perhaps others between them."""

    def check(reply: Reply) -> bool:
        found = iter([event["type"] for event in reply.events])
        return all(kind in found for kind in expected)

    return check


CALLS = [
    calls("`tool_choice: auto` lets the model call", {}, called, nim="yes"),
    calls("the finish reason is `tool_calls`", {}, ends("tool_calls"), nim="yes"),
    calls("a call has an id", {}, lambda r: len(_calls(r)[0]["id"]) >= 9, nim="yes"),
    calls("text before a call is its content", {}, lambda r: r.message["content"] == "I will look.",
          nim="yes"),
    calls("`tool_choice: none` shows no tools", {"tool_choice": "none"},
          lambda r: not _calls(r), nim="yes"),
    calls("`tool_choice: required`", {"tool_choice": "required"}, called, nim="yes"),
    calls("a named tool", {"tool_choice": NAMED}, called, nim="yes"),
    calls("a named tool ends with `stop`", {"tool_choice": NAMED}, ends("stop"), nim="yes"),
    calls("a tool that is not there", {"tool_choice": {"type": "function", "function":
          {"name": "x"}}}, refused("tool_choice", "not among tools"), R, R, R),
    calls("`tool_choice` without tools", {"tools": None, "tool_choice": "required"},
          refused("tool_choice"), R, R, R),
    calls("an unknown `tool_choice`", {"tool_choice": "maybe"}, refused("tool_choice"), R, R, R),
    calls("`tools: []`", {"tools": []}, lambda r: ok(r) and not _calls(r), vllm=R,
          why="it asks for nothing"),
    calls("`parallel_tool_calls: false` gives one call at most", {"parallel_tool_calls": False},
          called, nim="yes"),
    calls("`strict` holds with `auto`", {"tools": [tool("weather", strict=True)]}, called),
    calls("`allowed_tools` with `auto`", {"tool_choice": ALLOWED}, called, vllm=R,
          why="OpenAI has it"),
    calls("`allowed_tools` with `required`", {"tool_choice": MUST}, called, vllm=R,
          why="OpenAI has it"),
    calls("a stream of a call", {"stream": True}, streamed, nim="yes"),
    calls("a stream of a forced call", {"stream": True, "tool_choice": "required"}, streamed),
    calls("a stream of a named call", {"stream": True, "tool_choice": NAMED}, streamed),
    calls("a tool's name with a space", {"tools": [tool("two words")]}, refused("tools"), R,
          "yes", R),
    calls("a tool of another type", {"tools": [{"type": "web"}]}, refused("tools"), R, R, R),
    calls("129 tools", {"tools": [tool(f"t{i}") for i in range(129)]}, refused("tools"), R, "yes",
          R),
    Case("tools for a model that has none", {"tools": TOOLS}, refused("tools", "does not support"),
         R, R, nim=R),
    Case("`functions`", {"functions": [{"name": "f"}]}, refused("functions"), R, "ignored",
         why="OpenAI replaced it; a field has an effect, or is refused"),
    Case("`reasoning_content`", {}, lambda r: r.message["reasoning_content"] == "Hm.",
         vllm="as `reasoning`", nim="yes", app="thought"),
    Case("`reasoning`", {}, lambda r: r.message["reasoning"] == "Hm.", nim="since 2.0",
         app="thought"),
    Case("the answer is without its thought", {}, lambda r: r.message["content"] == "It costs 5.",
         nim="yes", app="thought"),
    Case("a thought in a stream", {"stream": True},
         lambda r: "".join(e["choices"][0]["delta"].get("reasoning_content", "")
                           for e in r.events) == "Hm.", nim="yes", vllm="as `reasoning`",
         app="thought"),
    Case("`include_reasoning: false`", {"include_reasoning": False},
         lambda r: "reasoning" not in r.message, app="thought"),
    Case("a thought of an earlier turn is taken back",
         {"messages": [*HELLO, {"role": "assistant", "content": "a", "reasoning_content": "b"},
                       *HELLO]}, ok, app="thought"),
]  # fmt: skip
OPENAI = [
    response("`input` as text", {}, lambda r: r.json["output"][0]["type"] == "message"),
    response("`input` as messages", {"input": HELLO}),
    response("`input_text` parts", {"input": [{"role": "user", "content":
             [{"type": "input_text", "text": "Hello"}]}]}),
    response("`instructions`", {"instructions": "Be short."},
             lambda r: r.json["instructions"] == "Be short."),
    response("`usage` of a response", {}, lambda r: r.json["usage"]["output_tokens"] > 3),
    response("`status: completed`", {}, lambda r: r.json["status"] == "completed"),
    response("`status: incomplete` at `max_output_tokens`", {"max_output_tokens": 2},
             lambda r: r.json["incomplete_details"] == {"reason": "max_output_tokens"}),
    response("events of a response", {"stream": True}, kinds(
        "response.created", "response.in_progress", "response.output_item.added",
        "response.content_part.added", "response.output_text.delta", "response.output_text.done",
        "response.content_part.done", "response.output_item.done", "response.completed")),
    response("`sequence_number` of events", {"stream": True},
             lambda r: [e["sequence_number"] for e in r.events] == list(range(len(r.events)))),
    response("`text.format: json_schema`", {"text": {"format": {"type": "json_schema",
             "name": "a", "schema": {"enum": ["yes", "no"]}}}},
             lambda r: json.loads(r.json["output"][0]["content"][0]["text"]) in ("yes", "no")),
    response("`text.format: json_object`", {"text": {"format": {"type": "json_object"}},
             "max_output_tokens": 3}),
    response("`tools` of a response", {"tools": [{"type": "function", "name": "weather",
             "parameters": {"type": "object"}}]}, app="calling",
             check=lambda r: r.json["output"][1]["type"] == "function_call"),
    response("events of a call", {"stream": True, "tools": [{"type": "function",
             "name": "weather", "parameters": {"type": "object"}}]}, kinds(
        "response.function_call_arguments.delta", "response.function_call_arguments.done"),
             app="calling"),
    response("a call and its output as input", {"input": [*HELLO,
             {"type": "function_call", "call_id": "c", "name": "pay", "arguments": "{}"},
             {"type": "function_call_output", "call_id": "c", "output": "paid"}]}),
    response("a `reasoning` item of the output", {}, app="thought",
             check=lambda r: r.json["output"][0]["type"] == "reasoning"),
    response("events of a thought", {"stream": True}, kinds(
        "response.reasoning_text.delta", "response.reasoning_text.done"), app="thought"),
    response("`top_logprobs` of a response", {"top_logprobs": 2,
             "include": ["message.output_text.logprobs"]},
             lambda r: r.json["output"][0]["content"][0]["logprobs"]),
    response("`store` when no responses are kept", {"store": True},
             lambda r: r.json["store"] is False),
    response("`previous_response_id` when none are kept", {"previous_response_id": "resp_1"},
             refused("response_id", "serve.response_store", 404), "404", "404"),
    response("`background`", {"background": True}, refused("background"), R, "with a store",
             why="a request ends with its connection"),
    response("tools that run on the server", {"tools": [{"type": "web_search"}]},
             refused("tools"), R, "with a tool server", why="the server runs no tools"),
    response("`item_reference`", {"input": [{"type": "item_reference", "id": "a"}]},
             refused("input"), R, R),
    response("`truncation: auto`", {"truncation": "auto"}),
    response("`metadata` is returned", {"metadata": {"a": "b"}},
             lambda r: r.json["metadata"] == {"a": "b"}),
    response("an unknown field of a response", {"foo": 1}, refused("foo"), R, "ignored",
             why="OpenAI refuses it"),
    response("`/v1/responses/input_tokens`", {}, lambda r: r.json["input_tokens"] > 3, "yes",
             "404", path=f"{RESPONSES}/input_tokens", why="OpenAI has it"),
    Case("a response that is not there", None, lambda r: r.status == 404, "404", "404",
         path=f"{RESPONSES}/resp_1", method="GET"),
]  # fmt: skip
ANTHROPIC = [
    message("a message", {}, lambda r: r.json["content"][0]["type"] == "text"),
    message("`system` as text", {"system": "Be short."}),
    message("`system` as blocks", {"system": [{"type": "text", "text": "Be short."}]}),
    message("blocks of text", {"messages": [{"role": "user", "content":
            [{"type": "text", "text": "Hello"}]}]}),
    message("`stop_reason: end_turn`", {}, lambda r: r.json["stop_reason"] == "end_turn"),
    message("`stop_reason: max_tokens`", {"max_tokens": 2},
            lambda r: r.json["stop_reason"] == "max_tokens"),
    message("`stop_sequences`", {"stop_sequences": ["costs"]},
            lambda r: r.json["stop_sequence"] == "costs"),
    message("`usage` of a message", {}, lambda r: r.json["usage"]["input_tokens"] > 3),
    message("events of a message", {"stream": True}, kinds(
        "message_start", "content_block_start", "content_block_delta", "content_block_stop",
        "message_delta", "message_stop")),
    message("a `tool_use` block", {"tools": [{"name": "weather", "input_schema":
            {"type": "object"}}]}, lambda r: r.json["content"][1]["input"] == {"town": "Rome"},
            app="calling"),
    message("`stop_reason: tool_use`", {"tools": [{"name": "weather", "input_schema":
            {"type": "object"}}]}, lambda r: r.json["stop_reason"] == "tool_use", app="calling"),
    message("`input_json_delta` events", {"stream": True, "tools": [{"name": "weather",
            "input_schema": {"type": "object"}}]},
            lambda r: any(e.get("delta", {}).get("type") == "input_json_delta" for e in r.events),
            app="calling"),
    message("`tool_choice: any`", {"tool_choice": {"type": "any"}, "tools": [{"name": "weather",
            "input_schema": tool("weather")["function"]["parameters"]}]},
            lambda r: r.json["content"][0]["type"] == "tool_use", app="calling"),
    message("`tool_choice: tool`", {"tool_choice": {"type": "tool", "name": "weather"},
            "tools": [{"name": "weather",
                       "input_schema": tool("weather")["function"]["parameters"]}]},
            lambda r: r.json["content"][0]["name"] == "weather", app="calling"),
    message("a `tool_result` block", {"messages": [*HELLO,
            {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "pay",
                                               "input": {}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1",
                                          "content": "paid"}]}]}),
    message("a `thinking` block", {}, lambda r: r.json["content"][0]["type"] == "thinking",
            app="thought"),
    message("`thinking_delta` events", {"stream": True},
            lambda r: any(e.get("delta", {}).get("type") == "thinking_delta" for e in r.events),
            app="thought"),
    message("`thinking: disabled`", {"thinking": {"type": "disabled"}}),
    message("`output_config.format`", {"output_config": {"format": {"type": "json_schema",
            "schema": {"enum": ["yes", "no"]}}}},
            lambda r: json.loads(r.json["content"][0]["text"]) in ("yes", "no")),
    message("the assistant's turn last is gone on with",
            {"messages": [*HELLO, {"role": "assistant", "content": "It"}]}),
    message("an image block", {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
            failed("invalid_request_error", "not text"), R, R),
    message("no `max_tokens`", {"max_tokens": None}, failed("invalid_request_error", "max_tokens"),
            R, R),
    message("an unknown model of a message", {"model": "gpt"}, failed("not_found_error"), "404",
            "404"),
    message("`mcp_servers`", {"mcp_servers": [{"url": "u"}]}, failed("invalid_request_error"), R,
            "ignored", why="a field has an effect, or is refused"),
    message("`/v1/messages/count_tokens`", {"max_tokens": None},
            lambda r: r.json["input_tokens"] > 3, path=f"{MESSAGES}/count_tokens"),
]  # fmt: skip
