"""Streamed answers: text is held back until rails have passed it.

A window is checked together with the whole text before it. After each check, all is released but
its end, which may be the beginning of what a rail would block. So nothing that is as long as that
end, or shorter, leaves in part: a card number or a key is withheld whole.
"""

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, NamedTuple

from pipeline.serving.guardrails.outcome import Outcome

FILTERED = "content_filter"  # OpenAI's finish reason for a text that was withheld
Choice = dict[str, Any]
CheckText = Callable[[str], Awaitable[tuple[str, Outcome | None]]]
CheckCall = Callable[[dict[str, Any]], Awaitable[Outcome | None]]


class Streaming(NamedTuple):
    """A configuration's `rails.output.streaming`, in characters.

    window: those between two checks (chunk_size). held: those that are held back (context_size).
    """

    window: int
    held: int


def joined(streamings: Iterable[Streaming | None]) -> Streaming | None:
    """What suits several configurations; None if one of them checks only complete answers."""
    given = list(streamings)
    known = [one for one in given if one is not None]
    if len(known) < len(given) or not known:
        return None
    return Streaming(min(s.window for s in known), max(s.held for s in known))


class Window:
    """The chunks of one choice, from the model to the client.

    Args:
        streaming: None holds everything until the choice is complete.
        check, check_call: run the rails on the text so far, and on a tool call.
        refusal: what to write where a rail that blocks says nothing.

    Attributes:
        filtered: whether a rail has ended the choice.
        released: whether any text has been released.
    """

    def __init__(
        self, streaming: Streaming | None, check: CheckText, check_call: CheckCall, refusal: str
    ) -> None:
        self._streaming, self._check, self._check_call = streaming, check, check_call
        self._refusal = refusal
        self._text, self._sent = "", ""
        self._checked = 0  # characters
        self._waiting: list[Choice] = []
        self.filtered = False

    @property
    def released(self) -> bool:
        return bool(self._sent)

    async def push(self, choice: Choice) -> list[Choice]:
        """The chunks to send now that this one has come."""
        if "delta" in choice:  # without thoughts, which rails do not check
            shown = ("role", "content", "tool_calls")
            delta = {name: v for name, v in choice["delta"].items() if name in shown}
            choice = {**choice, "delta": delta}
        if self.filtered or "role" in choice.get("delta", ()):
            return [] if self.filtered else [choice]
        self._text += _text(choice)
        if self._streaming is None:
            self._waiting.append(choice)
            return await self._complete(choice) if choice["finish_reason"] else []
        for call in choice.get("delta", {}).get("tool_calls") or ():
            if stop := await self._check_call(call["function"]):
                return self._filter(choice, stop)
            return [choice]
        unchecked = len(self._text) - self._checked
        if unchecked < self._streaming.window and not choice["finish_reason"]:
            return []
        return await self._release(choice, self._streaming.held)

    async def _release(self, choice: Choice, held: int) -> list[Choice]:
        self._checked = len(self._text)
        checked, stop = await self._check(self._text)
        if stop or not checked.startswith(self._sent):
            return self._filter(choice, stop)
        end = len(checked)
        if not choice["finish_reason"]:
            end -= held
        part = checked[len(self._sent) : max(end, 0)]
        self._sent += part
        return _chunks(choice, part)

    async def _complete(self, choice: Choice) -> list[Choice]:
        """All chunks of a choice that was held until its end."""
        checked, stop = await self._check(self._text)
        for held in self._waiting:
            for call in held.get("delta", {}).get("tool_calls") or ():
                stop = stop or await self._check_call(call["function"])
        if stop:
            return self._filter(choice, stop)
        self._sent = checked
        if checked == self._text:
            return self._waiting
        calls = [one for one in self._waiting if one.get("delta", {}).get("tool_calls")]
        return [*calls, *_chunks(choice, checked)]

    def _filter(self, choice: Choice, stop: Outcome | None) -> list[Choice]:
        """The end of a choice that a rail stops. What was sent passed, and stays."""
        self.filtered = True
        text = "" if self._sent else (stop.message if stop else "") or self._refusal
        return _chunks({**choice, "finish_reason": FILTERED}, text)


def _text(choice: Choice) -> str:
    return (choice["delta"].get("content") if "delta" in choice else choice["text"]) or ""


def _chunks(choice: Choice, text: str) -> list[Choice]:
    """Chunks with this text, and with the choice's finish reason if it has one."""
    reason = choice["finish_reason"]
    if "delta" not in choice:
        return [{**choice, "text": text, "logprobs": None}] if text or reason else []
    base = {"index": choice["index"], "logprobs": None}
    found = [{**base, "delta": {"content": text}, "finish_reason": None}] if text else []
    return [*found, *([{**base, "delta": {}, "finish_reason": reason}] if reason else [])]
