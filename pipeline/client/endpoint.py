"""Asks a server with OpenAI's API for chat completions, many at a time.

    with Ledger(folder / "answers.jsonl") as ledger:
        endpoint = Endpoint(config.synthesize.endpoint, ledger, "synthesize.endpoint")
        for answer in endpoint.ask(requests):
            ...

A request that fails is an answer with a `failure`; the others go on. What no request can mend, and
a budget that is spent, ends the iteration with an error, after the answers that are there. Answers
are in the ledger: another run asks only for what is missing.
"""

import asyncio
import hashlib
import json
import random
import re
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from decimal import Decimal
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from pipeline.client.addresses import headers, is_loopback, is_url, message, without_password
from pipeline.client.budget import NOTHING, Budget, Use
from pipeline.client.ledger import Ledger
from pipeline.config.endpoint import EndpointConfig
from pipeline.core import secrets
from pipeline.core.errors import ConfigError, MissingRuntime, PipelineError, short

if TYPE_CHECKING:
    import httpx

CONNECT_SECONDS = 10
MAX_BYTES = 16 * 2**20  # of an answer
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 60.0  # seconds between two attempts
AHEAD = 4  # times the requests in flight: answers that may wait for an earlier one
IN_A_ROW = 2  # times the requests in flight: failures after which the server counts as gone
AGAIN = (408, 409, 425, 429)  # another attempt may succeed, as with all from 500 on
HOPELESS = (401, 402, 403, 404, 405)  # no other request would succeed
_THOUGHT = re.compile(r"\A\s*<think>.*?</think>\s*", re.DOTALL)


class BudgetSpent(PipelineError):
    """The next request could exceed the budget."""


@dataclass(frozen=True)
class Request:
    """One chat completion to ask for.

    messages: with role and content. seed: of the sampling; None leaves it to the server. more:
    further fields of OpenAI's API, such as response_format. about: what the caller wants to find
    again in the answer; it is not sent.
    """

    messages: Sequence[Mapping[str, str]]
    seed: int | None = None
    more: Mapping[str, Any] = field(default_factory=dict)
    about: Any = None


@dataclass(frozen=True)
class Answer:
    """What came of a request: a text, or why there is none.

    model: as the server names it. finish_reason: "length" if the text is cut off. use: tokens and
    money. cached: whether an earlier run had asked for it.
    """

    request: Request
    text: str = ""
    failure: str | None = None
    model: str = ""
    finish_reason: str = ""
    use: Use = NOTHING
    cached: bool = False


class _Failed(Exception):
    """An attempt brought no answer.

    again: whether another may. gone: whether the server could not be reached or did not answer.
    sent: whether it may have cost something.
    """

    def __init__(self, what: str, *, again: bool, gone: bool = False, sent: bool = True) -> None:
        super().__init__(what)
        self.again, self.gone, self.sent = again, gone, sent


class Endpoint:
    """A server, and what it may be asked.

    Args:
        section: the dotted name of its settings, for messages.

    Raises:
        ConfigError: its key or its URL cannot be used.

    Attributes:
        budget: what was used of it, earlier runs with the same ledger included.
        place: the URL for messages and records, without a password.
        model: as the settings name it; if they do not, known once something was asked.
    """

    def __init__(self, settings: EndpointConfig, ledger: Ledger, section: str) -> None:
        self.budget = Budget(settings.budget, settings.price, ledger.used)
        self.model = settings.model
        self._url = secrets.expand(settings.base_url).rstrip("/")
        self.place = without_password(self._url)
        if not is_url(self._url):
            raise ConfigError(f"{section}.base_url={self.place}: give a URL with a host and port")
        self._settings, self._ledger, self._section = settings, ledger, section
        self._headers = self._key(settings.key_variable)
        self._limit = "max_tokens"  # the field; newer models of OpenAI's want another one
        self._not_before = 0.0  # until when a busy server wants no request
        self._failures = 0  # in a row
        self._stop: PipelineError | None = None

    def ask(self, requests: Iterable[Request]) -> Generator[Answer, None, None]:
        """Answers in the order of the requests, which are taken as there is room for them. Closing
        it ends the requests in flight, which count in full.

        Raises:
            BudgetSpent: the next request could exceed the budget.
            MissingRuntime: the server cannot be reached, refuses the key, has no such model, or
                failed too often in a row.
        """
        self._slots = asyncio.Semaphore(self._settings.concurrency)
        self._settled = asyncio.Event()
        with asyncio.Runner() as runner:
            client = self._client()
            try:
                if self.model is None:
                    self.model = runner.run(self._only_model(client))
                yield from self._in_order(runner, client, iter(requests))
            finally:
                runner.run(client.aclose())
        if self._stop:
            raise self._stop

    def _key(self, variable: str | None) -> dict[str, str]:
        if variable is None:
            return {}
        if not (found := headers(variable)):
            raise ConfigError(
                f"{self._section}.key_variable={variable}: this environment variable is not set: "
                "set it to the API key"
            )
        return found

    def _client(self) -> "httpx.AsyncClient":
        import httpx

        most = self._settings.concurrency
        return httpx.AsyncClient(
            headers={**self._headers, "Content-Type": "application/json"},
            timeout=httpx.Timeout(self._settings.timeout, connect=CONNECT_SECONDS, pool=None),
            limits=httpx.Limits(max_connections=most, max_keepalive_connections=most),
            trust_env=not is_loopback(self._url),
        )

    def _in_order(
        self, runner: asyncio.Runner, client: "httpx.AsyncClient", requests: Iterator[Request]
    ) -> Iterator[Answer]:
        """Keep `concurrency` requests in flight, and give their answers in order."""
        waiting: deque[asyncio.Task[Answer | None]] = deque()

        async def first() -> Answer | None:
            while len(waiting) < AHEAD * self._settings.concurrency and not self._stop:
                if (request := next(requests, None)) is None:
                    break
                waiting.append(asyncio.create_task(self._answer(client, request)))
            return await waiting[0] if waiting else None

        while True:
            answer = runner.run(first())
            if not waiting:
                return
            waiting.popleft()
            if answer:
                yield answer

    async def _answer(self, client: "httpx.AsyncClient", request: Request) -> Answer | None:
        """The answer to a request, after as many attempts as the settings allow; None if it is not
        there because everything ends."""
        key = self._digest(request)
        if found := self._ledger.find(key):
            return _as_answer(request, found, cached=True)
        async with self._slots:
            for attempt in range(self._settings.retries + 1):
                await self._pause(attempt)
                most = self.budget.most(request.messages, self._settings.max_tokens)
                if not await self._has_room(most):
                    return None
                try:
                    answer = await self._send(client, request, key, most)
                except _Failed as error:
                    last = not error.again or attempt == self._settings.retries
                    if error.gone or last:
                        self._count_failure(error)
                    if last:
                        return None if self._stop else Answer(request, failure=str(error))
                else:
                    self._failures = 0
                    return answer
        raise AssertionError("there is a first attempt")

    async def _pause(self, attempt: int) -> None:
        """Wait before a further attempt, and as long as a busy server asks."""
        if attempt:
            pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (attempt - 1))
            await asyncio.sleep(pause * random.uniform(0.5, 1))  # so that not all come at once
        while (left := self._not_before - time.monotonic()) > 0 and not self._stop:
            await asyncio.sleep(min(left, 1))

    async def _has_room(self, most: Use) -> bool:
        """Reserve what a request can use, once the budget has room for it beside those in flight.

        False if nothing is to be sent any more.
        """
        while not self._stop and not self.budget.fits(most):
            if not self.budget.reserved:
                self._end(
                    BudgetSpent(
                        f"{self._section}.budget: {self.budget.spent()} are used, and the next "
                        "request could exceed it: raise the budget and run the same command "
                        "again, which asks only for what is missing"
                    )
                )
                break
            self._settled.clear()
            await self._settled.wait()
        if self._stop:
            return False
        self.budget.reserve(most)
        return True

    def _end(self, error: PipelineError) -> None:
        """Send nothing any more; what is in flight may finish."""
        self._stop = self._stop or error
        self._settled.set()

    def _count_failure(self, error: _Failed) -> None:
        self._failures += 1
        if self._failures >= IN_A_ROW * self._settings.concurrency:
            self._end(
                MissingRuntime(
                    f"{self.place} failed {self._failures} times in a row, the last time with: "
                    f"{error}: check that server and {self._section}, and run the same command "
                    "again, which asks only for what is missing"
                )
            )

    async def _send(
        self, client: "httpx.AsyncClient", request: Request, key: str, most: Use
    ) -> Answer:
        """Make one attempt, for which `most` is reserved.

        Raises:
            _Failed: it brought no answer.
        """
        number = self._ledger.sending(key, most)
        used = most  # unless it is known
        try:
            answer = await self._post(client, request)
            counts = answer["prompt_tokens"], answer["completion_tokens"]
            if None not in counts:
                used = self.budget.use(*counts)
                self.budget.learn(request.messages, counts[0])
            answer |= {"tokens": used.tokens, "cost": str(used.cost)}
            self._ledger.answered(number, key, answer, used)
            return _as_answer(request, answer, cached=False)
        except _Failed as error:
            if not error.sent:
                used = NOTHING
                self._ledger.refused(number)
            raise
        finally:
            self.budget.settle(most, used)
            self._settled.set()

    async def _post(self, client: "httpx.AsyncClient", request: Request) -> dict[str, Any]:
        """What the server answers, checked; see _parse.

        Raises:
            _Failed: it brought no answer.
        """
        import httpx

        body = {**self._body(request), self._limit: self._settings.max_tokens}
        try:
            async with (
                asyncio.timeout(self._settings.timeout),
                client.stream(
                    "POST", f"{self._url}/chat/completions", content=json.dumps(body)
                ) as response,
            ):
                text = await _read(response)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise _Failed(
                f"it cannot be reached ({error})", again=True, gone=True, sent=False
            ) from None
        except (TimeoutError, httpx.TimeoutException):
            seconds = f"{self._settings.timeout:g} s"
            raise _Failed(f"no answer within {seconds}", again=True, gone=True) from None
        except httpx.HTTPError as error:
            cause = f"{type(error).__name__}: {error}".rstrip(": ")
            raise _Failed(f"no answer ({cause})", again=True, gone=True) from None
        if response.status_code != 200:
            raise self._refusal(response, text)
        return _parse(text)

    def _refusal(self, response: "httpx.Response", text: str) -> _Failed:
        """What a status other than 200 means for this request, and for all."""
        status = response.status_code
        what = f"status {status}: {short(secrets.mask(message(text)), 300)}"
        if status == 400 and "max_completion_tokens" in text and self._limit == "max_tokens":
            self._limit = "max_completion_tokens"
            return _Failed(what, again=True, sent=False)
        if status in HOPELESS:
            self._end(
                MissingRuntime(
                    f"{self.place} answers with {what}: check {self._section}.base_url, .model and "
                    ".key_variable"
                )
            )
        if wish := _retry_after(response.headers.get("Retry-After", "")):
            self._not_before = time.monotonic() + min(wish, LONGEST_PAUSE)
        return _Failed(what, again=status in AGAIN or status >= 500, sent=False)

    async def _only_model(self, client: "httpx.AsyncClient") -> str:
        """
        Raises:
            MissingRuntime: the server does not answer, or does not have exactly one model.
        """
        import httpx

        url = f"{self.place}/models"
        try:
            async with (
                asyncio.timeout(min(CONNECT_SECONDS, self._settings.timeout)),
                client.stream("GET", f"{self._url}/models") as response,
            ):
                text = await _read(response)
        except (httpx.HTTPError, TimeoutError, _Failed) as error:
            cause = f"{type(error).__name__}: {error}".rstrip(": ")
            raise MissingRuntime(
                f"{url} does not answer ({cause}): start that server, or set "
                f"{self._section}.base_url"
            ) from None
        if response.status_code != 200:
            raise MissingRuntime(
                f"{url} answers with {self._refusal(response, text)}: set {self._section}.model, "
                "and .key_variable if it asks for a key"
            )
        try:
            names = [str(card["id"]) for card in json.loads(text)["data"]]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise MissingRuntime(
                f"{url} does not list models as OpenAI's API does: it answers with "
                f"{short(text, 80)}: set {self._section}.base_url"
            ) from None
        if len(names) != 1:
            known = ", ".join(short(name) for name in names[:10]) or "none"
            raise MissingRuntime(
                f"{url} lists {len(names)} models ({known}): set {self._section}.model"
            )
        return names[0]

    def _body(self, request: Request) -> dict[str, Any]:
        body: dict[str, Any] = {"model": self.model, "messages": list(request.messages)}
        if self._settings.temperature is not None:
            body["temperature"] = self._settings.temperature
        if request.seed is not None:
            body["seed"] = request.seed
        return body | dict(request.more)

    def _digest(self, request: Request) -> str:
        """What decides an answer: the key of the ledger."""
        body = [self.place, self._settings.max_tokens, self._body(request)]
        return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


async def _read(response: "httpx.Response") -> str:
    content = bytearray()
    async for part in response.aiter_bytes():
        content += part
        if len(content) > MAX_BYTES:
            raise _Failed(f"an answer of more than {MAX_BYTES // 2**20} MiB", again=False)
    return content.decode(errors="replace")


def _parse(text: str) -> dict[str, Any]:
    """The parts of a chat completion that are kept; counts of tokens are None if it has none.

    Raises:
        _Failed: it is none.
    """
    try:
        answer = json.loads(text)
        choice = answer["choices"][0]
        content = choice["message"]["content"]
        usage = answer.get("usage") or {}
        if not isinstance(content, str | None):
            raise TypeError("its content is no text")
        return {
            "text": content or "",
            "finish_reason": str(choice.get("finish_reason")),
            "model": str(answer.get("model")),
            "prompt_tokens": _count(usage.get("prompt_tokens")),
            "completion_tokens": _count(usage.get("completion_tokens")),
        }
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        raise _Failed(
            f"not a chat completion: {short(secrets.mask(text), 80)}", again=True
        ) from None


def _count(value: object) -> int | None:
    return value if type(value) is int and 0 <= value < 2**40 else None


def _as_answer(request: Request, found: Mapping[str, Any], *, cached: bool) -> Answer:
    """An answer of _parse, or of the ledger."""
    text = _THOUGHT.sub("", found["text"])
    return Answer(
        request,
        text,
        failure=None if text.strip() else "an empty answer",
        model=found["model"],
        finish_reason=found["finish_reason"],
        use=Use(found["tokens"], Decimal(found["cost"])),
        cached=cached,
    )


def _retry_after(value: str) -> float:
    """Seconds of a Retry-After header, which may be a date."""
    with suppress(ValueError):
        return max(0.0, float(value))
    with suppress(ValueError, TypeError):
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    return 0.0
