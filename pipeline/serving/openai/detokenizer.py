"""From token ids to text while they come: whole characters only, and never a part of a stop."""

from collections.abc import Callable, Sequence

# What decoders write for bytes that are no character, or not yet.
INCOMPLETE = "\ufffd"


class TextStream:
    """Text of an answer, token by token.

    The pieces joined are the text of all tokens, cut before the first stop string.

    Args:
        decode: text of token ids.
        stops: strings that end the answer.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stops: Sequence[str] = ()) -> None:
        self._decode = decode
        self._stops = stops
        self._ids: list[int] = []
        self._start = 0  # tokens from here on are decoded: some decoders need those before
        self._shown = 0  # tokens up to here are in the text
        self._held = ""  # could be the beginning of a stop
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that this token completes; often, but not always, its own."""
        self._ids.append(token)
        before = self._decode(self._ids[self._start : self._shown])
        text = self._decode(self._ids[self._start :])
        if text.endswith(INCOMPLETE) or len(text) < len(before):
            return ""
        self._start, self._shown = self._shown, len(self._ids)
        return self._release(text[len(before) :])

    def finish(self) -> str:
        """What is left when no token will come."""
        if self.stopped:
            return ""
        before = self._decode(self._ids[self._start : self._shown])
        rest = self._release(self._decode(self._ids[self._start :])[len(before) :])
        held, self._held = self._held, ""
        return rest if self.stopped else rest + held

    def _release(self, text: str) -> str:
        if not self._stops:
            return text
        text = self._held + text
        found = [at for at in (text.find(stop) for stop in self._stops) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        longest = max((len(stop) - 1 for stop in self._stops), default=0)
        for size in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-size:]) for stop in self._stops):
                self._held = text[-size:]
                return text[:-size]
        self._held = ""
        return text
