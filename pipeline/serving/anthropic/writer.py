"""A message of the Messages API, whole or as events."""

import json
import uuid
from collections.abc import Sequence
from typing import Any

from pipeline.serving.anthropic.protocol import error_body
from pipeline.serving.openai.choices import ChatFormatter
from pipeline.serving.openai.generation import Delta, Generation
from pipeline.serving.openai.writers import event
from pipeline.serving.parsers.events import Arguments, Call, Event, Text, Thought

# Anthropic's reasons for the end of an answer, by OpenAI's.
REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


class MessageWriter:
    """`streams`: whether events are written."""

    def __init__(self, formatter: ChatFormatter, model: str, *, streams: bool) -> None:
        self._formatter, self._streams = formatter, streams
        self._blocks: list[dict[str, Any]] = []
        self._open = ""  # the kind of the block to which more may be added
        self._arguments = ""  # of the call that is open
        self._reason: str | None = None
        self._stop: str | None = None
        self._message = {
            "id": f"msg_{uuid.uuid4().hex}",
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": self._blocks,
            "stop_reason": None,
            "stop_sequence": None,
        }

    def whole(self, complete: Sequence[Delta], run: Generation) -> dict[str, Any]:
        (delta,) = complete
        self._take(delta)
        ends = {"stop_reason": self._reason, "stop_sequence": self._stop}
        return {**self._message, **ends, "usage": _usage(run)}

    def first(self, run: Generation) -> bytes:
        begun = {**self._message, "content": [], "usage": {**_usage(run), "output_tokens": 0}}
        return _event("message_start", message=begun) + _event("ping")

    def delta(self, delta: Delta, run: Generation) -> bytes:
        return self._take(delta)

    def last(self, run: Generation) -> bytes:
        ends = {"stop_reason": self._reason, "stop_sequence": self._stop}
        return _event("message_delta", delta=ends, usage=_usage(run)) + _event("message_stop")

    def failure(self, body: dict[str, Any]) -> bytes:
        kind = 429 if body["error"]["type"] == "rate_limit_error" else 500
        return event(error_body(body["error"]["message"], kind), "error")

    def _take(self, delta: Delta) -> bytes:
        """Add what is new to the blocks. Returns the events that say so."""
        found = b"".join(map(self._add, self._formatter.events(delta)))
        if delta.reason:
            found += self._close()
            self._reason = REASONS.get(self._formatter.reason(delta) or "", "end_turn")
            if isinstance(delta.stop, str):
                self._reason, self._stop = "stop_sequence", delta.stop
        return found

    def _add(self, part: Event) -> bytes:
        found = b""
        kind = _KINDS[type(part)]
        if isinstance(part, Call) or self._open != kind:
            found += self._close()
            self._blocks.append(_block(part))
            self._open = kind
            shown = {**self._blocks[-1]}
            found += self._event("content_block_start", content_block=shown)
        block = self._blocks[-1]
        if isinstance(part, Arguments):
            self._arguments += part.text
            return found + self._delta(type="input_json_delta", partial_json=part.text)
        if isinstance(part, Thought):
            block["thinking"] += part.text
            return found + self._delta(type="thinking_delta", thinking=part.text)
        if isinstance(part, Text):
            block["text"] += part.text
            return found + self._delta(type="text_delta", text=part.text)
        return found

    def _close(self) -> bytes:
        """End the open block."""
        kind, self._open = self._open, ""
        if not kind:
            return b""
        if kind == "tool_use":
            # What is cut at its limit is no JSON.
            self._blocks[-1]["input"] = _parsed(self._arguments)
            self._arguments = ""
        signed = self._delta(type="signature_delta", signature="") if kind == "thinking" else b""
        return signed + self._event("content_block_stop")

    def _delta(self, **fields: Any) -> bytes:
        return self._event("content_block_delta", delta=fields)

    def _event(self, kind: str, **fields: Any) -> bytes:
        if not self._streams:
            return b""
        return _event(kind, index=len(self._blocks) - 1, **fields)


_KINDS = {Text: "text", Thought: "thinking", Call: "tool_use", Arguments: "tool_use"}


def _block(part: Event) -> dict[str, Any]:
    """A new, empty block."""
    if isinstance(part, Call):
        name = f"toolu_{uuid.uuid4().hex[:24]}"
        return {"type": "tool_use", "id": name, "name": part.name, "input": {}}
    if isinstance(part, Thought):
        return {"type": "thinking", "thinking": "", "signature": ""}
    return {"type": "text", "text": ""}


def _parsed(arguments: str) -> Any:
    try:
        return json.loads(arguments or "{}")
    except ValueError:
        return {}


def _usage(run: Generation) -> dict[str, Any]:
    cached = run.cached_tokens or 0
    return {
        "input_tokens": run.prompt_tokens - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": run.completion_tokens,
    }


def _event(kind: str, **fields: Any) -> bytes:
    return event({"type": kind, **fields}, kind)
