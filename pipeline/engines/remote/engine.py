"""Another server of OpenAI's API (NIM, trtllm-serve, vllm serve, our own) as an engine of ours.

Prompts go there as token ids, to /completions. What comes back is text; vLLM and what is built on
it also give token ids if asked. From a server that does not, the text is tokenized again, piece by
piece: it is the same text, but token counts can differ a little from that server's own, and there
are no log-probabilities. A tokenizer that does not give its text back piece by piece is refused.
"""

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import httpx

from pipeline.client.addresses import headers, message, without_password
from pipeline.core.console import get_console
from pipeline.core.errors import ArtifactError, MissingRuntime
from pipeline.core.secrets import expand
from pipeline.engines.base import EngineFailed, Load, QueueFull, Sampling, Token
from pipeline.engines.description import Description
from pipeline.engines.remote.description import API_KEY, FEATURES
from pipeline.engines.remote.requests import (
    BEHIND,
    KNOWN_TOGETHER,
    SAMPLING_FIELDS,
    refusal,
    request_body,
)
from pipeline.engines.token_stream import PushedStream
from pipeline.models.chat.renderer import Chat

CONNECT_SECONDS, READ_SECONDS = 10, 600
PROBE_SECONDS = 1.0  # between checks of a server that is down
PIECES = ("a", " b", "c", " d\n", "é", "  e")  # text that must survive a round trip


class RemoteEngine:
    """An engine (base.Engine) on another machine.

    Args:
        chat: the tokenizer of that model. description: its settings say where the server is.
        max_queue: requests in flight beyond description.max_batch_size.

    Raises:
        ConfigError: the key cannot be sent.
        MissingRuntime: the server does not answer, does not have OpenAI's API, refuses the key or
            has no such model.
        ArtifactError: it returns no token ids, and the tokenizer needs them.

    Attributes:
        lacks: fields of Sampling that the server does not support.
    """

    features = FEATURES

    def __init__(self, chat: Chat, description: Description, *, max_queue: int) -> None:
        self._chat = chat
        self._url = expand(description.settings["base_url"])
        self._model = description.settings["model"]
        self._place = without_password(self._url)
        self._headers = headers(API_KEY)
        self._slots = description.max_batch_size
        self.room = self._slots + max_queue
        self._streams: dict[PushedStream, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._client: httpx.AsyncClient | None = None
        self._down: str | None = None
        longest = self._find_model()
        self.max_seq_len = min(longest or description.max_seq_len, description.max_seq_len)
        self.max_input_len = min(description.max_input_len, self.max_seq_len - 1)
        self._known, self._gives_ids = self._try_out()
        self.lacks = (SAMPLING_FIELDS | {"stop_token_ids"}) - self._known
        if not self._gives_ids and not _is_piecewise(chat):
            raise ArtifactError(
                f"{self._place} returns no token ids, and the tokenizer in {chat.folder} does not "
                "encode text piece by piece: use a server with return_token_ids (vLLM 0.10.2 or "
                "newer), or serve the model here"
            )

    def generate(self, prompt: Sequence[int], sampling: Sampling) -> PushedStream:
        """See base.Engine.generate."""
        if self._down:
            raise EngineFailed(self._down)
        if len(self._streams) >= self.room:
            raise QueueFull
        body = request_body(self._model, prompt, sampling, self._known)
        stream = PushedStream(lambda: self._leave(stream))
        work = self._follow(body, stream, sampling.stop_ids)
        self._streams[stream] = self._start(work)
        return stream

    def load(self) -> Load:
        running = min(self._slots, len(self._streams))
        return Load(running, len(self._streams) - running)

    def down(self) -> str | None:
        return self._down

    def close(self) -> None:
        self._down = "the server is shutting down"
        for stream in self._streams:
            stream.end(EngineFailed(self._down))
        for task in self._tasks:
            task.cancel()
        if self._client:  # it belongs to the event loop in which this is called
            self._start(self._client.aclose())

    def _find_model(self) -> int | None:
        """The longest sequence that the server accepts; None if it does not say."""
        try:
            answer = httpx.get(
                f"{self._url}/models", headers=self._headers, timeout=CONNECT_SECONDS
            )
        except httpx.HTTPError as error:
            raise MissingRuntime(
                f"engine=remote: {self._place} does not answer ({error}): start it, or set "
                "engine.arguments.base_url"
            ) from error
        if answer.status_code != 200:
            raise MissingRuntime(
                f"engine=remote: {self._place}/models answers {answer.status_code}: "
                f"{message(answer.text)}; its key is read from {API_KEY}"
            )
        cards = {str(card.get("id")): card for card in self._entries(answer, "data")}
        if self._model not in cards:
            raise MissingRuntime(
                f"engine=remote: {self._place} has no model {self._model}: set "
                f"engine.arguments.model to one of {', '.join(cards)}"
            )
        longest = cards[self._model].get("max_model_len")
        return longest if isinstance(longest, int) else None

    def _try_out(self) -> tuple[frozenset[str], bool]:
        """Which fields beyond OpenAI's the server accepts, and whether it returns token ids."""
        prompt = self._chat.prompt([{"role": "user", "content": "Hello"}])
        how = Sampling(1, temperature=0, stop_ids=frozenset(self._chat.stop_ids))
        plain = request_body(self._model, prompt, how, frozenset())
        known: set[str] = set()
        gives_ids = False
        for fields in ({}, *KNOWN_TOGETHER):
            try:
                answer = httpx.post(
                    f"{self._url}/completions",
                    json={**plain, **fields, "stream": False},
                    headers=self._headers,
                    timeout=READ_SECONDS,
                )
            except httpx.HTTPError as error:
                raise MissingRuntime(
                    f"engine=remote: {self._place}/completions does not answer ({error}): look at "
                    "that server's log, or set engine.arguments.base_url"
                ) from error
            if answer.status_code == 200:
                known |= fields.keys()
                choices = self._entries(answer, "choices")
                gives_ids |= any(choice.get("token_ids") for choice in choices)
            elif not fields:
                raise MissingRuntime(
                    f"engine=remote: {self._place}/completions answers {answer.status_code}: "
                    f"{message(answer.text)}"
                )
        return frozenset(known), gives_ids

    def _entries(self, answer: httpx.Response, name: str) -> list[dict[str, Any]]:
        """The objects that a response lists under a name.

        Raises:
            MissingRuntime: there are none: it is another kind of server.
        """
        try:
            found = answer.json()[name]
        except (ValueError, KeyError, TypeError):
            found = None
        if isinstance(found, list) and all(isinstance(entry, dict) for entry in found):
            return found
        raise MissingRuntime(
            f"engine=remote: {self._place} does not have OpenAI's API: it answers "
            f"{answer.url.path} with {answer.text[:80]!r}; set engine.arguments.base_url=http://host:port/v1"
        )

    def _leave(self, stream: PushedStream) -> None:
        if task := self._streams.pop(stream, None):
            task.cancel()

    def _start(self, work: Any) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _follow(self, body: Any, stream: PushedStream, stop_ids: frozenset[int]) -> None:
        """Pass on an answer as it arrives; cancelling closes the connection, which ends it."""
        stop = min(stop_ids, default=None)
        client = self._client = self._client or httpx.AsyncClient(
            headers=self._headers,
            timeout=httpx.Timeout(READ_SECONDS, connect=CONNECT_SECONDS),
            limits=httpx.Limits(max_connections=self.room),
        )
        try:
            url = f"{self._url}/completions"
            async with client.stream("POST", url, json=body) as answer:
                if answer.status_code != 200:
                    await answer.aread()
                    raise refusal(answer.status_code, answer.text)
                async for line in answer.aiter_lines():
                    stop = self._take(line, stream, stop_ids, stop)
            stream.end(EngineFailed(f"{BEHIND} ended an answer before it was complete"))
        except (EngineFailed, QueueFull, ValueError) as error:
            stream.end(error)
        except httpx.HTTPError as error:
            self._lose(error)
            stream.end(EngineFailed(self._down or ""))
        except Exception as error:  # whatever it was: the reader must not wait for more
            cause = f"{type(error).__name__}: {error}"
            stream.end(EngineFailed(f"{BEHIND} sent something unreadable ({cause})"))
        finally:
            self._streams.pop(stream, None)

    def _take(
        self, line: str, stream: PushedStream, stop_ids: frozenset[int], stop: int | None
    ) -> int | None:
        """Handle one line of server-sent events; lines without a choice only keep the connection.

        Servers return the token that ended the answer with its end, before it, or not at all.

        Args:
            stop: the token that ends the answer, as far as it is known.

        Returns:
            The same, after this line.

        Raises:
            EngineFailed: it reports an error, or is not an event.
        """
        data = line.removeprefix("data:").strip()
        if not line.startswith("data:") or data == "[DONE]":
            return stop
        try:
            event = json.loads(data)
        except ValueError as error:
            raise EngineFailed(f"{BEHIND} sent an event that is not JSON: {data[:200]}") from error
        if event.get("error"):
            raise EngineFailed(f"{BEHIND}: {message(data)}")
        for choice in event.get("choices") or ():
            ids = self._ids(choice)
            stop = next((token for token in ids if token in stop_ids), stop)
            tokens = [Token(token) for token in ids if token not in stop_ids]
            if choice.get("finish_reason") == "stop" and stop is not None:
                tokens.append(Token(stop))
            if tokens:
                stream.put(tokens)
            if choice.get("finish_reason"):
                stream.end()
        return stop

    def _ids(self, choice: Any) -> list[int]:
        if self._gives_ids:
            return choice.get("token_ids") or []
        return _encode(self._chat, choice["text"])

    def _lose(self, error: Exception) -> None:
        if self._down is None:
            self._down = f"{BEHIND} does not answer"
            cause = f"{type(error).__name__} {error}"
            get_console().print(f"[red]not ready[/]: {self._place} does not answer: {cause}")
            self._start(self._wait_for_it())

    async def _wait_for_it(self) -> None:
        """Wait until the server answers again."""
        assert self._client
        while True:
            await asyncio.sleep(PROBE_SECONDS)
            try:
                answer = await self._client.get(f"{self._url}/models")
            except httpx.HTTPError:
                continue
            if answer.status_code == 200:
                self._down = None
                get_console().print(f"[green]ready[/]: {self._place} answers again")
                return


def _is_piecewise(chat: Chat) -> bool:
    """Whether encoding text piece by piece and decoding it gives the same text."""
    ids = [i for piece in PIECES for i in _encode(chat, piece)]
    return chat.decode(ids) == "".join(PIECES)


def _encode(chat: Chat, text: str) -> list[int]:
    return list(chat.tokenizer.encode(text, add_special_tokens=False).ids)
