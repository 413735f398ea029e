"""Incremental detokenization: complete characters only, and never a part of a stop string."""

from collections.abc import Callable, Sequence

# What decoders write for bytes that do not form a character, or not yet.
INCOMPLETE = "\ufffd"


class Detokenizer:
    """The text of one sequence, token by token.

    The parts joined are the text of all tokens, cut before the first stop string.

    Args:
        decode: turns token ids into text.
        stops: strings that end the sequence.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stops: Sequence[str] = ()) -> None:
        self._decode = decode
        self._stops = stops
        self._ids: list[int] = []
        self._start = 0  # decoding starts here: some decoders need the tokens before
        self._shown = 0  # tokens up to here are in the text
        self._pending = ""  # could be the beginning of a stop string
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that this token completes, often but not always its own."""
        self._ids.append(token)
        before = self._decode(self._ids[self._start : self._shown])
        text = self._decode(self._ids[self._start :])
        if text.endswith(INCOMPLETE) or len(text) < len(before):
            return ""
        self._start, self._shown = self._shown, len(self._ids)
        return self._release(text[len(before) :])

    def finish(self) -> str:
        """The remaining text, after the last token."""
        if self.stopped:
            return ""
        before = self._decode(self._ids[self._start : self._shown])
        rest = self._release(self._decode(self._ids[self._start :])[len(before) :])
        pending, self._pending = self._pending, ""
        return rest if self.stopped else rest + pending

    def _release(self, text: str) -> str:
        if not self._stops:
            return text
        text = self._pending + text
        found = [at for at in (text.find(stop) for stop in self._stops) if at >= 0]
        if found:
            self.stopped, self._pending = True, ""
            return text[: min(found)]
        longest = max((len(stop) - 1 for stop in self._stops), default=0)
        for size in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-size:]) for stop in self._stops):
                self._pending = text[-size:]
                return text[:-size]
        self._pending = ""
        return text
