"""Asks a server questions as a client does that sets nothing, and collects the answers.

A request has the model and the messages, so its answer is sampled as the server's defaults say. Two
fields are added that a client gets in effect anyway: a limit of tokens that only an answer reaches
which runs on, and a seed, so that sampling can be repeated.
"""

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.core.errors import PipelineError
from pipeline.models.chat.messages import Message
from pipeline.models.chat.tool_calls import as_request, function_call, said
from pipeline.serving.benchmark.concurrency import send_all

TOO_LONG = "context_length_exceeded"


@dataclass(frozen=True)
class Reply:
    """text: the answer. cut: it reached the limit of tokens. refused: why the server gives none,
    because the question is too long for it; else empty."""

    text: str
    cut: bool = False
    refused: str = ""


def bodies(
    questions: Sequence[Sequence[Message]],
    limits: Sequence[int],
    tools: Sequence[Sequence[Mapping[str, Any]]],
    *,
    model: str,
    sampled: bool,
    seed: int,
) -> list[dict[str, Any]]:
    """Requests to /chat/completions.

    limits: tokens of each answer. tools: of each question, those that may be called. sampled: the
        server's defaults sample, so that a seed matters.
    """
    return [
        {
            "model": model,
            "messages": [as_request(turn) for turn in messages],
            **({"tools": callable_tools} if callable_tools else {}),
            "max_tokens": limit,
            **({"seed": seed + number} if sampled else {}),
        }
        for number, (messages, limit, callable_tools) in enumerate(
            zip(questions, limits, tools, strict=True)
        )
    ]


def ask_all(
    base_url: str,
    requests: Sequence[dict[str, Any]],
    concurrency: int,
    advance: Callable[[], None] = lambda: None,
) -> list[Reply]:
    """Send chat completions, `concurrency` at a time; the replies in the order of the requests.

    base_url: such as http://127.0.0.1:8000/v1. advance: called after each reply.

    Raises:
        PipelineError: the server fails, or refuses a request for another reason than its length.
    """

    async def send(session: Any, url: str, body: Mapping[str, Any]) -> Reply:
        async with session.post(url, json=body) as response:
            reply = _reply(url, response.status, await response.json())
        advance()
        return reply

    return asyncio.run(send_all(base_url, requests, concurrency, send))


def _text(message: Mapping[str, Any]) -> str:
    """An answer as `said` has an expected one: its text, and each call on a line of its own."""
    calls = [
        function_call(name, json.loads(arguments), call["id"])
        for call in message.get("tool_calls") or ()
        for name, arguments in [(call["function"]["name"], call["function"]["arguments"])]
    ]
    return said({"content": message["content"] or "", "tool_calls": calls})


def _reply(url: str, status: int, answer: Any) -> Reply:
    if status == 200:
        choice = answer["choices"][0]
        return Reply(_text(choice["message"]), choice["finish_reason"] == "length")
    error = answer["error"]
    if error.get("code") == TOO_LONG:
        return Reply("", refused=error["message"])
    raise PipelineError(f"{url} returned {status}: {error['message']}")
