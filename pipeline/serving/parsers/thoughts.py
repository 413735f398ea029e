"""Thoughts before an answer, between two marks: <think> and others."""

from typing import NamedTuple

from pipeline.serving.parsers.events import Parser, Parsing, Source, Thought


class Marks(NamedTuple):
    """What begins and ends a thought."""

    opening: str
    closing: str


THINK = Marks("<think>", "</think>")
MARKS = (
    THINK,
    Marks("[THINK]", "[/THINK]"),
    Marks("<seed:think>", "</seed:think>"),
    Marks("<|START_THINKING|>", "<|END_THINKING|>"),
    Marks("<reasoning>", "</reasoning>"),
)


def with_thoughts(marks: Marks, rest: Parser, *, begun: bool) -> Parser:
    """A parser of a thought, and then of the rest.

    Args:
        begun: whether the prompt has begun the thought.
    """

    def parse(source: Source) -> Parsing:
        opened = yield from source.starts(marks.opening)
        if opened:
            yield from source.skip(marks.opening)
        if opened or begun:
            yield from _drop_line(source)
            yield from source.text_until(marks.closing, event=Thought)
            yield from source.skip_space()
        yield from rest(source)

    return parse


def _drop_line(source: Source) -> Parsing:
    """Drop the line break that follows an opening."""
    while not source.text and not source.ended:
        yield None
    source.text = source.text.removeprefix("\n")


def plain(source: Source) -> Parsing:
    """A parser of an answer that is only text."""
    yield from source.rest()
