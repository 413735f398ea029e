"""Incremental detokenization: complete characters only, and never a part of a stop string.

DecodeStream of the tokenizers library does the decoding. This module adds what it lacks: the rest
of the text when the sequence ends, a restart where it raises, and a limit on the tokens that wait,
because it decodes all of them again with each new token.
"""

from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

# What decoders write for bytes that do not form a character, or not yet.
INCOMPLETE = "\ufffd"
CHARACTER_TOKENS = 4  # the most that form one character: it has at most four bytes
MOST_WAITING = 4 * CHARACTER_TOKENS


class Detokenizer:
    """The text of one sequence, token by token.

    The parts joined are the text of all tokens, cut before the first stop string.

    Args:
        stops: strings that end the sequence.
        control_tokens: whether they are part of the text.
        shows_stop: whether the stop string is, too.
        unchecked: the first tokens, whose text may have stop strings.

    Attributes:
        stopped: whether a stop string was found. stop: it.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stops: Sequence[str] = (),
        *,
        control_tokens: bool = False,
        shows_stop: bool = False,
        unchecked: int = 0,
    ) -> None:
        self._tokenizer, self._skip_control_tokens = tokenizer, not control_tokens
        self._stops = stops
        self._shown: list[int] = []  # tokens of the last part: some decoders need them
        self._waiting: list[int] = []  # tokens since then
        self._stream = self._stream_after(self._shown)
        self._pending = ""  # could be the beginning of a stop string
        self.stopped = False
        self.stop: str | None = None
        self._shows_stop, self._unchecked = shows_stop, unchecked

    def push(self, token: int) -> str:
        """The text that this token completes, often but not always its own."""
        text = self._decode_next(token)
        if self._unchecked:
            self._unchecked -= 1
            return text
        return self._release(text)

    def finish(self) -> str:
        """The remaining text, after the last token."""
        if self.stopped:
            return ""
        rest = self._release(self._decode(self._waiting))
        pending, self._pending = self._pending, ""
        return rest if self.stopped else rest + pending

    def _decode_next(self, token: int) -> str:
        self._waiting.append(token)
        try:
            text = self._stream.step(self._tokenizer, token)
        except Exception:
            # The text no longer begins with what the stream has returned. The library has no class
            # for this error. It happens with byte fallback: once a run of byte tokens has an
            # invalid byte, the decoder writes U+FFFD for every byte of the run.
            text = self._decode(self._waiting)
            self._stream = self._stream_after(self._waiting)
        if text is None:
            return self._flush() if len(self._waiting) >= MOST_WAITING else ""
        self._shown, self._waiting = self._waiting, []
        return text

    def _flush(self) -> str:
        """The text of the waiting tokens that later tokens cannot change."""
        waiting = self._without_skipped(self._waiting)
        if len(waiting) < len(self._waiting):
            # Skipped tokens are no part of a character: bytes before and after them form one.
            self._waiting = []
            self._stream = self._stream_after(self._shown)
            return "".join(map(self._decode_next, waiting))
        whole = self._decode(waiting)
        newest = len(waiting) - whole.endswith(INCOMPLETE)
        for cut in range(newest, newest - CHARACTER_TOKENS, -1):
            text = self._decode(waiting[:cut])
            if text + self._decode(waiting[cut:]) == whole:
                self._waiting = []
                self._stream = self._stream_after(self._shown)
                return text + "".join(map(self._decode_next, waiting[cut:]))
        return ""

    def _without_skipped(self, ids: list[int]) -> list[int]:
        if not self._skip_control_tokens:
            return ids
        added = self._tokenizer.get_added_tokens_decoder()
        return [token for token in ids if token not in added or not added[token].special]

    def _stream_after(self, shown: list[int]) -> DecodeStream:
        return DecodeStream(shown, skip_special_tokens=self._skip_control_tokens)

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=self._skip_control_tokens))

    def _release(self, text: str) -> str:
        if not self._stops:
            return text
        text = self._pending + text
        found = [(at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            at, self.stop = min(found)
            self.stopped, self._pending = True, ""
            return text[: at + len(self.stop)] if self._shows_stop else text[:at]
        longest = max((len(stop) - 1 for stop in self._stops), default=0)
        for size in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-size:]) for stop in self._stops):
                self._pending = text[-size:]
                return text[:-size]
        self._pending = ""
        return text
