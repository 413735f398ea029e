"""Anthropic's messages as messages of a chat, and the same request to chat completions."""

from typing import Any

from pydantic import ValidationError

from pipeline.serving.anthropic.protocol import MessagesRequest, PromptRequest
from pipeline.serving.openai.errors import invalid, refused
from pipeline.serving.openai.protocol import ChatRequest

Message = dict[str, Any]
# Fields, by those of chat completions.
NAMES = {
    "max_completion_tokens": "max_tokens",
    "stop": "stop_sequences",
    "response_format": "output_config",
    "reasoning_effort": "thinking",
}
ROLES = ("user", "assistant", "system")


def messages_of(given: list[Any]) -> list[Message]:
    """
    Raises:
        ApiError: a message is malformed, or has content that is not text.
    """
    messages: list[Message] = []
    for i, message in enumerate(given):
        place = f"messages.{i}"
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise invalid("messages", f"{place} needs a role: user or assistant")
        content = message.get("content")
        if isinstance(content, str):
            messages.append({"role": message["role"], "content": content})
        elif not isinstance(content, list):
            raise invalid("messages", f"{place}.content must be a text or a list of blocks")
        elif message["role"] == "assistant":
            messages.append(_answer(content, place))
        else:
            messages += _question(message["role"], content, place)
    return messages


def _question(role: str, blocks: list[Any], place: str) -> list[Message]:
    """A user's turn: results of tools come first, as each is a message of its own."""
    results, texts = [], []
    for i, block in enumerate(blocks):
        where = f"{place}.content.{i}"
        kind = _kind(block, where)
        if kind == "tool_result":
            text = text_of(block.get("content"), f"{where}.content")
            call = block.get("tool_use_id")
            results.append({"role": "tool", "tool_call_id": call, "content": text})
        else:
            texts.append(_text(block, kind, where))
    turn = [{"role": role, "content": "".join(texts)}] if texts or not results else []
    return [*results, *turn]


def _answer(blocks: list[Any], place: str) -> Message:
    texts, thoughts, calls = [], [], []
    for i, block in enumerate(blocks):
        where = f"{place}.content.{i}"
        kind = _kind(block, where)
        if kind == "tool_use":
            function = {"name": block.get("name"), "arguments": block.get("input") or {}}
            calls.append({"id": block.get("id"), "type": "function", "function": function})
        elif kind == "thinking":
            thoughts.append(str(block.get("thinking") or ""))
        elif kind != "redacted_thinking":
            texts.append(_text(block, kind, where))
    message: Message = {"role": "assistant", "content": "".join(texts)}
    if thoughts:
        message["reasoning_content"] = "\n".join(thoughts)
    if calls:
        message["tool_calls"] = calls
    return message


def text_of(content: Any, place: str) -> str:
    """A text, from a text or a list of blocks of text.

    Raises:
        ApiError: a block is not text.
    """
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise invalid("messages", f"{place} must be a text or a list of blocks")
    return "".join(
        _text(block, _kind(block, f"{place}.{i}"), f"{place}.{i}")
        for i, block in enumerate(content)
    )


def _kind(block: Any, place: str) -> str:
    kind = block.get("type") if isinstance(block, dict) else None
    if not isinstance(kind, str):
        raise invalid("messages", f"{place} must be an object with a type")
    return kind


def _text(block: dict[str, Any], kind: str, place: str) -> str:
    text = block.get("text") if kind == "text" else None
    if not isinstance(text, str):
        raise invalid("messages", f"{place} is not text ({kind:.40}): send text only")
    return text


def chat_request(body: PromptRequest) -> ChatRequest:
    """The same request to chat completions.

    Raises:
        ApiError: a field is not valid.
    """
    messages = messages_of(body.messages)
    if system := text_of(body.system, "system"):
        messages = [{"role": "system", "content": system}, *messages]
    fields: dict[str, Any] = {"model": body.model, "messages": messages}
    # A last turn of the assistant is gone on with.
    if messages and messages[-1]["role"] == "assistant" and "tool_calls" not in messages[-1]:
        fields["continue_final_message"] = True
    if body.tools:
        fields["tools"] = [
            {
                "type": "function",
                "function": {
                    "name": tool.name,
                    "description": tool.description,
                    "parameters": tool.input_schema,
                    "strict": tool.strict,
                },
            }
            for tool in body.tools
        ]
    if choice := body.tool_choice:
        fields["tool_choice"] = {"any": "required", "tool": _named(choice.name)}.get(
            choice.type, choice.type
        )
        if choice.disable_parallel_tool_use:
            fields["parallel_tool_calls"] = False
    form = body.output_format or (body.output_config.format if body.output_config else None)
    if form:
        fields["response_format"] = {"type": "json_schema", "json_schema": {"schema": form.value}}
    if body.output_config and body.output_config.effort:
        fields["reasoning_effort"] = body.output_config.effort
    elif body.thinking and body.thinking.type != "adaptive":
        fields["reasoning_effort"] = "medium" if body.thinking.type == "enabled" else "none"
    fields["chat_template_kwargs"] = body.chat_template_kwargs
    if isinstance(body, MessagesRequest):
        fields |= {
            "max_completion_tokens": body.max_tokens,
            "stop": body.stop_sequences,
            "temperature": body.temperature,
            "top_k": body.top_k,
            "top_p": body.top_p,
            "stream": body.stream,
        }
    try:
        return ChatRequest.model_validate({k: v for k, v in fields.items() if v is not None})
    except ValidationError as error:
        raise refused(error, NAMES) from None


def _named(name: str | None) -> Any:
    return {"type": "function", "function": {"name": name}}
