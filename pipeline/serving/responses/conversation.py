"""The items of a request and of earlier responses as messages of a chat."""

from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError

from pipeline.serving.openai.errors import invalid, refused
from pipeline.serving.openai.protocol import ChatRequest
from pipeline.serving.responses.protocol import (
    AllowedTools,
    FunctionChoice,
    InputRequest,
    ResponsesRequest,
)

Message = dict[str, Any]
# Fields, by those of chat completions.
NAMES = {
    "messages": "input",
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text",
    "reasoning_effort": "reasoning",
    "logprobs": "include",
}
TRUNCATED = -1  # truncate_prompt_tokens: as many as a prompt may have


def messages_of(items: "str | list[Any]", before: Iterable[Message] = ()) -> list[Message]:
    """The messages of a request's input, behind those of earlier responses.

    A thought and the calls that follow an assistant's message become one message with it.

    Raises:
        ApiError: an item is not supported, or malformed.
    """
    messages = list(before)
    if isinstance(items, str):
        return [*messages, {"role": "user", "content": items}]
    open_turn: Message | None = None  # the assistant's, to which more may be added

    def answer() -> Message:
        nonlocal open_turn
        if open_turn is None:
            open_turn = {"role": "assistant", "content": None}
            messages.append(open_turn)
        return open_turn

    for i, item in enumerate(items):
        place = f"input[{i}]"
        if not isinstance(item, dict):
            raise invalid("input", f"{place} is no object: send messages and other items")
        kind = item.get("type", "message")
        if kind == "reasoning":
            answer()["reasoning_content"] = _thought(item)
        elif kind == "function_call":
            turn = answer()
            turn["tool_calls"] = [*turn.get("tool_calls", []), _call(item, place)]
        elif kind == "function_call_output":
            open_turn = None
            output = item.get("output")
            call = item.get("call_id")
            messages.append({"role": "tool", "tool_call_id": call, "content": output})
        elif kind == "message" and item.get("role") == "assistant":
            turn = answer()
            if turn["content"] is not None or "tool_calls" in turn:
                open_turn = None
                turn = answer()
            turn["content"] = item.get("content")
        elif kind == "message":
            open_turn = None
            messages.append({"role": item.get("role"), "content": item.get("content")})
        else:
            raise invalid(
                "input",
                f"{place} is of the type {kind!r:.60}: this server takes message, function_call, "
                "function_call_output and reasoning",
                "unsupported_parameter",
            )
    return messages


def _thought(item: dict[str, Any]) -> str:
    parts = item.get("content") or item.get("summary") or []
    if not isinstance(parts, list):
        raise invalid("input", "the content and the summary of reasoning are lists of parts")
    found = [part.get("text") for part in parts if isinstance(part, dict)]
    return "\n".join(text for text in found if isinstance(text, str))


def _call(item: dict[str, Any], place: str) -> dict[str, Any]:
    call, name = item.get("call_id"), item.get("name")
    if not isinstance(call, str) or not isinstance(name, str):
        raise invalid("input", f"{place} needs a call_id and a name")
    function = {"name": name, "arguments": item.get("arguments")}
    return {"id": call, "type": "function", "function": function}


def chat_request(body: InputRequest, messages: list[Message]) -> ChatRequest:
    """The same request to chat completions.

    Raises:
        ApiError: it has no input.
    """
    if not messages:
        raise invalid("input", "Missing required parameter: 'input'", "missing_required_parameter")
    if body.instructions:
        messages = [{"role": "system", "content": body.instructions}, *messages]
    fields: dict[str, Any] = {"model": body.model, "messages": messages}
    if body.tools:
        fields["tools"] = [
            {"type": "function", "function": tool.model_dump(exclude={"type"}, exclude_none=True)}
            for tool in body.tools
        ]
    if body.tool_choice is not None:
        fields["tool_choice"] = _choice(body.tool_choice)
    fields["parallel_tool_calls"] = body.parallel_tool_calls
    if body.reasoning:
        fields["reasoning_effort"] = body.reasoning.effort
    if body.text:
        fields["verbosity"] = body.text.verbosity
        if not _is_forced(body.tool_choice):  # a forced call leaves no text to have a form
            fields["response_format"] = _format(body.text.format)
    if body.truncation == "auto":
        fields["truncate_prompt_tokens"] = TRUNCATED
    fields["chat_template_kwargs"] = body.chat_template_kwargs
    if isinstance(body, ResponsesRequest):
        fields |= _sampling(body)
    try:
        return ChatRequest.model_validate({k: v for k, v in fields.items() if v is not None})
    except ValidationError as error:
        raise refused(error, NAMES) from None


def _sampling(body: ResponsesRequest) -> dict[str, Any]:
    same = (
        *("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "ignore_eos", "seed"),
        *("presence_penalty", "frequency_penalty", "stop", "logit_bias", "stream"),
        *("guided_json", "guided_regex", "guided_choice", "guided_grammar"),
    )
    fields = {name: getattr(body, name) for name in same}
    fields["max_completion_tokens"] = body.max_output_tokens
    wants_logprobs = "message.output_text.logprobs" in (body.include or ())
    if wants_logprobs or body.top_logprobs:
        fields |= {"logprobs": True, "top_logprobs": body.top_logprobs}
    return fields


def _is_forced(choice: Any) -> bool:
    if isinstance(choice, AllowedTools):
        return choice.mode == "required"
    return choice == "required" or isinstance(choice, FunctionChoice)


def _choice(choice: Any) -> Any:
    if isinstance(choice, AllowedTools):
        names = [{"type": "function", "function": {"name": tool.name}} for tool in choice.tools]
        return {
            "type": "allowed_tools",
            "allowed_tools": {"mode": choice.mode, "tools": names},
        }
    if isinstance(choice, FunctionChoice):
        return {"type": "function", "function": {"name": choice.name}}
    return choice


def _format(form: Any) -> dict[str, Any] | None:
    if form is None:
        return None
    if form.type == "json_schema":
        schema = {"name": form.name, "schema": form.value}
        return {"type": "json_schema", "json_schema": schema}
    return {"type": form.type}
