"""One case: a request, what must come back, and what vLLM and NIM do."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

ANSWER = "Grüße! It costs 5 € 🌍."
HELLO = [{"role": "user", "content": "Hello"}]
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
UNSAID = "–"  # their documentation does not say


class Reply:
    """A response, whole or streamed."""

    def __init__(self, response: httpx.Response) -> None:
        self.response, self.status = response, response.status_code

    @property
    def json(self) -> Any:
        return self.response.json()

    @property
    def events(self) -> list[Any]:
        """The events of a stream, without `[DONE]`."""
        lines = [line for line in self.response.text.split("\n") if line.startswith("data: ")]
        return [json.loads(line[6:]) for line in lines if line != "data: [DONE]"]

    @property
    def choice(self) -> Any:
        return self.json["choices"][0]

    @property
    def message(self) -> Any:
        return self.choice["message"]

    @property
    def text(self) -> str:
        """The answer of the first choice, of a whole response or a stream."""
        if self.response.headers["content-type"].startswith("text/event-stream"):
            pieces = [e["choices"][0] for e in self.events if e.get("choices")]
            return "".join(p.get("text") or p.get("delta", {}).get("content") or "" for p in pieces)
        return self.choice["text"] if "text" in self.choice else self.message["content"]


Check = Callable[[Reply], Any]


@dataclass(frozen=True)
class Case:
    """
    Attributes:
        name: the behaviour, in words.
        body: fields of the request, beside those that it needs.
        check: whether what comes back is right.
        ours, vllm, nim: what the servers do, in a few words; the same words if it is the same.
        why: the reason of a difference.
        app: which server is asked; see test_behaviours.py.
    """

    name: str
    body: Mapping[str, Any] | None
    check: Check
    ours: str = "yes"
    vllm: str = "yes"
    nim: str = UNSAID
    why: str = ""
    path: str = CHAT
    method: str = "POST"
    app: str = "plain"
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def alike(self) -> bool:
        """Whether the server does as vLLM does, or as NIM."""
        return self.ours in (self.vllm, self.nim)


def ok(reply: Reply) -> bool:
    return reply.status == 200


def says(text: str) -> Check:
    """The answer is this text."""
    return lambda reply: ok(reply) and reply.text == text


def refused(param: str | None, words: str = "", status: int = 400) -> Check:
    """The request is refused in OpenAI's format, for this field."""

    def check(reply: Reply) -> bool:
        error = reply.json["error"]
        return (
            reply.status == status
            and (param is None or str(error["param"]).startswith(param))
            and words in error["message"]
            and set(error) == {"message", "type", "param", "code"}
        )

    return check
