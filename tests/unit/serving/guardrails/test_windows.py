"""Streamed text is released only after it was checked, and never a part of what is withheld."""

import asyncio
import random
import re
from typing import Any

import pytest

from pipeline.serving.guardrails.outcome import Outcome
from pipeline.serving.guardrails.windows import Streaming, Window, joined

SECRET = "4111 1111 1111 1111"
STOP = Outcome("leaks", "rail", "output", "blocked", 0.0, message="Withheld.")


class Rails:
    """Blocks the secret, and masks the word `name`."""

    def __init__(self) -> None:
        self.checked: list[str] = []

    async def text(self, text: str) -> tuple[str, Outcome | None]:
        self.checked.append(text)
        return re.sub("name", "***", text), STOP if SECRET in text else None

    async def call(self, function: dict[str, Any]) -> Outcome | None:
        return STOP if SECRET in function["arguments"] else None


def chunk(text: str = "", reason: str | None = None, **delta: Any) -> dict[str, Any]:
    content = {"content": text} if text else {}
    return {"index": 0, "delta": {**content, **delta}, "logprobs": None, "finish_reason": reason}


def run(pieces: list[str], streaming: Streaming | None, rails: Rails | None = None) -> list[Any]:
    """Everything that is sent, for an answer in these pieces."""
    rails = rails or Rails()
    window = Window(streaming, rails.text, rails.call, "Refused.")

    async def go() -> list[Any]:
        sent = await window.push(chunk(role="assistant"))
        for piece in pieces:
            sent += await window.push(chunk(piece))
        return sent + await window.push(chunk(reason="stop"))

    return asyncio.run(go())


def text_of(sent: list[Any]) -> str:
    return "".join(one["delta"].get("content", "") for one in sent)


def pieces_of(text: str, seed: int) -> list[str]:
    draw = random.Random(seed)
    found = []
    while text:
        size = draw.randint(1, 6)
        found.append(text[:size])
        text = text[size:]
    return found


@pytest.mark.parametrize("seed", range(30))
def test_no_part_of_a_secret_leaves_however_it_is_cut(seed: int) -> None:
    text = "Your card has this number on the front, and it is " + SECRET + ", which you know."
    sent = run(pieces_of(text, seed), Streaming(1 + 3 * (seed % 5), len(SECRET)))
    assert text.startswith(text_of(sent).removesuffix("Withheld."))
    assert "4111" not in text_of(sent)
    assert sent[-1]["finish_reason"] == "content_filter"


@pytest.mark.parametrize("streaming", [None, Streaming(1, 0), Streaming(3, 4), Streaming(100, 8)])
def test_a_harmless_answer_arrives_whole(streaming: Streaming | None) -> None:
    text = "A wire takes three days and costs 40 dollars."
    sent = run(pieces_of(text, 1), streaming)
    assert text_of(sent) == text
    assert [one["finish_reason"] for one in sent if one["finish_reason"]] == ["stop"]


def test_text_comes_before_the_answer_ends() -> None:
    rails = Rails()
    window = Window(Streaming(8, 4), rails.text, rails.call, "Refused.")

    async def first() -> list[list[Any]]:
        return [await window.push(chunk(piece)) for piece in ("one ", "two ", "three ", "four ")]

    sent = asyncio.run(first())
    assert [text_of(part) for part in sent] == ["", "one ", "", "two three f"]
    assert rails.checked == ["one two ", "one two three four "]


@pytest.mark.parametrize("streaming", [None, Streaming(2, 8)])
def test_a_changed_text_is_sent_as_it_was_changed(streaming: Streaming | None) -> None:
    sent = run(pieces_of("Dear name, your name is known to us, name.", 3), streaming)
    assert text_of(sent) == "Dear ***, your *** is known to us, ***."


def test_nothing_sent_means_the_rail_says_why() -> None:
    assert text_of(run([SECRET], Streaming(50, 50))) == "Withheld."


def test_a_tool_call_is_checked_before_it_is_sent() -> None:
    rails = Rails()
    for streaming in (None, Streaming(1, 1)):
        window = Window(streaming, rails.text, rails.call, "Refused.")
        call = {"index": 0, "function": {"name": "pay", "arguments": f'{{"card": "{SECRET}"}}'}}

        async def go(window: Window = window, call: Any = call) -> list[Any]:
            sent = await window.push(chunk(tool_calls=[call]))
            return sent + await window.push(chunk(reason="tool_calls"))

        sent = asyncio.run(go())
        assert "tool_calls" not in str([one["delta"] for one in sent])
        assert sent[-1]["finish_reason"] == "content_filter"


def test_several_configurations_share_the_strictest_window() -> None:
    assert joined([Streaming(8, 40), Streaming(4, 16)]) == Streaming(4, 40)
    assert joined([Streaming(8, 40), None]) is None
