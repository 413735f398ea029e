"""What an answer consists of, and the text that a parser reads it from.

A parser is one function:

    def parse(source: Source) -> Parsing:
        if (yield from source.text_until("<call>")):
            name = yield from source.take_until("(")
            yield from source.arguments(name)

It yields events, and None where it needs more text; the methods of Source do that by themselves.
Each event is sent as soon as it is yielded, so the arguments of a call are streamed piece by piece.
"""

from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Any, NamedTuple

from pipeline.serving.parsers.json_scanner import JsonScanner, as_arguments, encodable


class Text(NamedTuple):
    """More of the answer's text."""

    text: str


class Thought(NamedTuple):
    """More of what the model thought before its answer."""

    text: str


class Call(NamedTuple):
    """A tool call begins."""

    name: str


class Arguments(NamedTuple):
    """More of the last call's arguments, in JSON."""

    text: str


Event = Text | Thought | Call | Arguments
Parsing = Generator[Event | None, None, None]
Parser = Callable[["Source"], Parsing]
Tools = Mapping[str, Mapping[str, Any]]


class Source:
    """The text of one answer, which may still grow.

    Args:
        tools: the JSON schema of each tool's parameters, by its name.
        whole: whether all of the text is there at once, as for a response that is not streamed.

    Attributes:
        text: what was not taken yet.
        ended: whether no more will come.
        calls: how many calls were begun.
    """

    def __init__(self, tools: Tools | None = None, *, whole: bool = False) -> None:
        self.text, self.ended, self.whole, self.calls = "", False, whole, 0
        self.tools: Tools = tools or {}

    def take(self, count: int) -> str:
        taken, self.text = self.text[:count], self.text[count:]
        return taken

    def starts(self, *marks: str) -> Generator[None, None, str]:
        """Which of the marks comes next, behind white space; "" if none does. Takes nothing."""
        while True:
            begun = self.text.lstrip()
            if found := next((mark for mark in marks if begun.startswith(mark)), ""):
                return found
            if self.ended or (begun and not any(mark.startswith(begun) for mark in marks)):
                return ""
            yield

    def skip(self, *marks: str) -> Generator[None, None, bool]:
        """Take white space, and one of the marks if it comes next. Whether one did."""
        found = yield from self.starts(*marks)
        self.text = self.text.lstrip().removeprefix(found)
        return bool(found)

    def take_until(self, *marks: str) -> Generator[None, None, tuple[str, str]]:
        """Take the text before the first of the marks, and the mark.

        Returns:
            The text and the mark; all that is left and "", if the answer ends without one.
        """
        while True:
            found = [(at, mark) for mark in marks if (at := self.text.find(mark)) >= 0]
            if found:
                at, mark = min(found)
                text = self.take(at)
                self.take(len(mark))
                return text, mark
            if self.ended:
                return self.take(len(self.text)), ""
            yield

    def text_until(
        self, *marks: str, event: Callable[[str], Event] = Text, trims: bool = True
    ) -> Generator[Event | None, None, str]:
        """Send text up to the first of the marks, as it comes. Takes the mark.

        Args:
            event: what the text is sent as.
            trims: whether white space before the mark is left out.

        Returns:
            The mark; "" if the answer ends without one.
        """
        while True:
            found = [(at, mark) for mark in marks if (at := self.text.find(mark)) >= 0]
            if found:
                at, mark = min(found)
                text = self.take(at)
                self.take(len(mark))
                if text := (text.rstrip() if trims else text):
                    yield event(text)
                return mark
            if self.ended:
                if self.text:
                    yield event(self.take(len(self.text)))
                return ""
            known = len(self.text) - longest_beginning(self.text, marks)
            if trims:
                known = len(self.text[:known].rstrip())
            if known:
                yield event(self.take(known))
            yield None

    def rest(self) -> Parsing:
        """Send all that comes as text."""
        while True:
            if self.text:
                yield Text(self.take(len(self.text)))
            if self.ended:
                return
            yield None

    def skip_space(self) -> Generator[None, None, None]:
        """Take white space up to the next text, or to the end."""
        while not self.text.strip():
            self.text = ""
            if self.ended:
                return
            yield
        self.text = self.text.lstrip()

    def value(self) -> Generator[None, None, tuple[str, bool]]:
        """Take one value of JSON. Returns its text, and whether it is complete and valid."""
        scanner, text = JsonScanner(), ""
        while True:
            size = scanner.push(self.text)
            text += self.take(size)
            if scanner.done or scanner.wrong:
                return text, scanner.done
            if self.ended:
                return text, scanner.end()
            yield

    def arguments(self, name: str) -> Generator[Event | None, None, str | None]:
        """Send a call of `name`, whose arguments come next, in JSON.

        Arguments that are a text in JSON are that text's value.

        Returns:
            None if they are complete; else what is left of the call, which is text.
        """
        if not (yield from self.starts("{")):
            text, complete = yield from self.value()
            decoded = as_arguments(text) if complete else None
            if decoded is None:
                return text
            yield from self.call(name, decoded)
            return None
        yield from self.call(name)
        self.text = self.text.lstrip()
        scanner = JsonScanner()
        while True:
            if size := scanner.push(self.text):
                yield Arguments(self.take(size))
            if scanner.done:
                return None
            if scanner.wrong or self.ended:
                return ""
            yield None

    def call(self, name: str, arguments: str = "") -> Generator[Event, None, None]:
        """Send a call's beginning, and its arguments if they are known."""
        self.calls += 1
        yield Call(encodable(name))
        if arguments:
            yield Arguments(encodable(arguments))

    def attempt(
        self, part: Generator[Event | None, None, str | None]
    ) -> Generator[Event | None, None, str | None]:
        """Send the events of `part`, which returns None if it is complete.

        A response that is not streamed has none of them if it is not: its text stays untaken.
        """
        if not self.whole:
            return (yield from part)
        before, calls, events = self.text, self.calls, list[Event]()
        while True:
            try:
                event = next(part)
            except StopIteration as stop:
                if stop.value is None:
                    yield from events
                    return None
                self.text, self.calls = before, calls
                return ""
            if event is not None:
                events.append(event)


def longest_beginning(text: str, marks: Iterable[str]) -> int:
    """How many characters at a text's end may be the beginning of one of the marks."""
    most = 0
    for mark in marks:
        for size in range(min(len(mark) - 1, len(text)), most, -1):
            if text.endswith(mark[:size]):
                most = size
                break
    return most


class AnswerParser:
    """One answer, parsed while it is generated.

    Args:
        tools: as for Source.
        whole: whether it is parsed only when it has ended. A call that is not complete is text
            then; in a stream its beginning has been sent already.
    """

    def __init__(self, parse: Parser, tools: Tools | None = None, *, whole: bool = False) -> None:
        self._source = Source(tools, whole=whole)
        self._parsing: Parsing | None = parse(self._source)

    def feed(self, text: str) -> list[Event]:
        """Add text. Returns what is now known."""
        self._source.text += text
        return [] if self._source.whole else self._run()

    def finish(self) -> list[Event]:
        """The rest, when the answer has ended."""
        self._source.ended = True
        return self._run()

    def _run(self) -> list[Event]:
        events: list[Event] = []
        while self._parsing is not None:
            try:
                event = next(self._parsing)
            except StopIteration:
                self._parsing = None
                break
            if event is None:
                return events
            events.append(event)
        if self._source.text:  # the parser left it
            events.append(Text(self._source.take(len(self._source.text))))
        return events
