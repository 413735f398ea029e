"""A response of the Responses API, whole or as events."""

import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from pipeline.serving.openai.choices import ChatFormatter
from pipeline.serving.openai.generation import Delta, Generation
from pipeline.serving.openai.writers import event
from pipeline.serving.parsers.events import Arguments, Call, Event, Text, Thought
from pipeline.serving.responses.protocol import ResponsesRequest


def new_id(kind: str) -> str:
    return f"{kind}_{uuid.uuid4().hex}"


class ResponseWriter:
    """
    Args:
        count: counts the tokens of a text.
        keep: called with the complete response.
        stored: whether it is kept.
    """

    def __init__(
        self,
        formatter: ChatFormatter,
        model: str,
        body: ResponsesRequest,
        *,
        count: Callable[[str], int],
        keep: Callable[[dict[str, Any]], None],
        stored: bool,
    ) -> None:
        self._formatter, self._body, self._count, self._keep = formatter, body, count, keep
        self._output: list[dict[str, Any]] = []
        self._number = 0  # of the next event
        self._response = _response(body, model, stored=stored)

    def whole(self, complete: Sequence[Delta], run: Generation) -> dict[str, Any]:
        (delta,) = complete
        self._take(delta)
        self._close()
        return self._finished(delta.reason, run)

    def first(self, run: Generation) -> bytes:
        begun = {**self._response, "status": "in_progress"}
        created = self._event("response.created", response=begun)
        return created + self._event("response.in_progress", response=begun)

    def delta(self, delta: Delta, run: Generation) -> bytes:
        events = self._take(delta)
        if delta.reason:
            self._reason = delta.reason
            events += self._close()
        return events

    def last(self, run: Generation) -> bytes:
        response = self._finished(self._reason, run)
        return self._event(f"response.{response['status']}", response=response)

    def failure(self, body: dict[str, Any]) -> bytes:
        error = body["error"]
        failed = {**self._response, "status": "failed", "output": self._output}
        code = error["code"] or "server_error"
        failed["error"] = {"code": code, "message": error["message"]}
        return self._event("response.failed", response=failed)

    def _finished(self, reason: str | None, run: Generation) -> dict[str, Any]:
        response = self._response
        if reason == "length":
            response["status"] = "incomplete"
            response["incomplete_details"] = {"reason": "max_output_tokens"}
            for item in self._output[-1:]:
                item["status"] = "incomplete"
        else:
            response["status"] = "completed"
        response["output"] = self._output
        thoughts = "".join(
            part["text"]
            for item in self._output
            if item["type"] == "reasoning"
            for part in item["content"]
        )
        response["usage"] = {
            "input_tokens": run.prompt_tokens,
            "input_tokens_details": {"cached_tokens": run.cached_tokens or 0},
            "output_tokens": run.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": self._count(thoughts) if thoughts else 0},
            "total_tokens": run.prompt_tokens + run.completion_tokens,
        }
        self._keep(response)
        return response

    def _take(self, delta: Delta) -> bytes:
        """Add what is new to the items. Returns the events that say so."""
        found = b""
        chosen = self._formatter.logprobs_of(delta)
        for part in self._formatter.events(delta):
            found += self._add(part, chosen if isinstance(part, Text) else [])
        return found

    def _add(self, part: Event, chosen: list[Any]) -> bytes:
        kind = _KINDS[type(part)]
        found = b""
        if isinstance(part, Call) or not self._output or self._open != kind:
            found += self._close()
            self._output.append(_item(kind, part))
            self._open = kind
            found += self._begun(kind)
        item = self._output[-1]
        at = {"item_id": item["id"], "output_index": len(self._output) - 1}
        if isinstance(part, Arguments):
            item["arguments"] += part.text
            name = "response.function_call_arguments.delta"
            return found + self._event(name, **at, delta=part.text)
        if isinstance(part, Call):
            return found
        content = item["content"][0]
        content["text"] += part.text
        at["content_index"] = 0
        if isinstance(part, Thought):
            return found + self._event("response.reasoning_text.delta", **at, delta=part.text)
        content["logprobs"] += chosen
        name = "response.output_text.delta"
        return found + self._event(name, **at, delta=part.text, logprobs=chosen)

    def _begun(self, kind: str) -> bytes:
        item, index = self._output[-1], len(self._output) - 1
        if kind == "function_call":
            return self._event("response.output_item.added", output_index=index, item=item)
        empty = {**item, "content": []}
        at = {"item_id": item["id"], "output_index": index, "content_index": 0}
        return self._event(
            "response.output_item.added", output_index=index, item=empty
        ) + self._event("response.content_part.added", **at, part=item["content"][0])

    def _close(self) -> bytes:
        """End the open item."""
        kind, self._open = self._open, ""
        if not kind:
            return b""
        item, index = self._output[-1], len(self._output) - 1
        item["status"] = "completed"
        at = {"item_id": item["id"], "output_index": index}
        if kind == "function_call":
            done = self._event(
                "response.function_call_arguments.done",
                **at,
                name=item["name"],
                arguments=item["arguments"],
            )
        else:
            part = item["content"][0]
            at["content_index"] = 0
            name = "reasoning" if kind == "reasoning" else "output"
            more = {} if kind == "reasoning" else {"logprobs": part["logprobs"]}
            done = self._event(f"response.{name}_text.done", **at, text=part["text"], **more)
            done += self._event("response.content_part.done", **at, part=part)
        return done + self._event("response.output_item.done", output_index=index, item=item)

    def _event(self, kind: str, **fields: Any) -> bytes:
        if not self._body.stream:
            return b""
        number, self._number = self._number, self._number + 1
        return event({"type": kind, "sequence_number": number, **fields}, kind)

    _open = ""  # the kind of the item to which more may be added
    _reason: str | None = None


_KINDS = {
    Text: "message",
    Thought: "reasoning",
    Call: "function_call",
    Arguments: "function_call",
}


def _item(kind: str, part: Event) -> dict[str, Any]:
    """A new, empty item."""
    if isinstance(part, Call):
        return {
            "id": new_id("fc"),
            "type": kind,
            "status": "in_progress",
            "call_id": new_id("call"),
            "name": part.name,
            "arguments": "",
        }
    if kind == "reasoning":
        content = [{"type": "reasoning_text", "text": ""}]
        return {
            "id": new_id("rs"),
            "type": kind,
            "status": "in_progress",
            "summary": [],
            "content": content,
        }
    text = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    return {
        "id": new_id("msg"),
        "type": kind,
        "status": "in_progress",
        "role": "assistant",
        "content": [text],
    }


def _response(body: ResponsesRequest, model: str, *, stored: bool) -> dict[str, Any]:
    """The response without its output; what the request left out has its default."""
    text = body.text.model_dump(by_alias=True, exclude_none=True) if body.text else {}
    choice = body.tool_choice
    return {
        "id": new_id("resp"),
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": None,
        "metadata": body.metadata or {},
        "model": model,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "reasoning": {"effort": body.reasoning.effort if body.reasoning else None, "summary": None},
        "service_tier": "default",
        "store": stored,
        "temperature": 1.0 if body.temperature is None else body.temperature,
        "text": {"format": {"type": "text"}, **text},
        "tool_choice": "auto" if choice is None else _dumped(choice),
        "tools": [_tool(tool.model_dump()) for tool in body.tools or ()],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": 1.0 if body.top_p is None else body.top_p,
        "truncation": body.truncation or "disabled",
        "usage": None,
        "user": body.user,
    }


def _tool(given: dict[str, Any]) -> dict[str, Any]:
    return {**given, "strict": bool(given.get("strict"))}


def _dumped(choice: Any) -> Any:
    return choice if isinstance(choice, str) else choice.model_dump()
