"""GPT-OSS's format: messages in channels, of which one is for thoughts and one for calls.

<|channel|>analysis<|message|>…<|end|><|start|>assistant<|channel|>final<|message|>…
<|channel|>commentary to=functions.pay <|constrain|>json<|message|>{…}<|call|>
"""

import re
from collections.abc import Generator

from pipeline.serving.parsers.events import Event, Parsing, Source, Text, Thought

CHANNEL, MESSAGE, START = "<|channel|>", "<|message|>", "<|start|>"
ENDS = ("<|end|>", "<|return|>", "<|call|>", START)
_RECIPIENT = re.compile(r"to=(?:functions\.)?([\w.-]+)")


def harmony(source: Source) -> Parsing:
    """A parser of such messages. What is not in a channel is text."""
    while True:
        mark = yield from source.text_until(CHANNEL, START, *ENDS)
        if not mark:
            return
        if mark == START:  # of a message, whose role comes next and perhaps who gets it
            role, mark = yield from source.take_until(CHANNEL, MESSAGE)
        else:
            role = ""
        if mark not in (CHANNEL, MESSAGE):
            continue
        channel = ""
        if mark == CHANNEL:
            channel, mark = yield from source.take_until(MESSAGE)
            if not mark:
                return
        found = _RECIPIENT.search(f"{role} {channel}")
        if found:
            left = yield from source.attempt(_call(source, found[1]))
            if left:
                yield Text(left)
        elif channel.strip().startswith("analysis"):
            yield from source.text_until(*ENDS, event=Thought)
        else:
            yield from source.text_until(*ENDS, trims=False)


def _call(source: Source, name: str) -> Generator[Event | None, None, str | None]:
    return (yield from source.arguments(name))
