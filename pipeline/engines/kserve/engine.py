"""A server of KServe's protocol, such as Triton, as an engine of ours: token ids in and out."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.core.console import get_console
from pipeline.core.errors import MissingRuntime
from pipeline.engines.base import EngineFailed, Load, QueueFull, Sampling, Token
from pipeline.engines.description import Description
from pipeline.engines.kserve import contract
from pipeline.engines.kserve.transport import BEHIND, Answer, Http, Unreachable, connect
from pipeline.engines.token_stream import PushedStream

PROBE_SECONDS = 1.0  # between checks of a server that is down


class KServeEngine:
    """An engine (base.Engine) on a server of KServe's protocol.

    Args:
        url: grpc://host:8001 or http://host:8000/v2. model: of token ids, on that server.
        max_queue: requests in flight beyond description.max_batch_size.
        setting: what to change if the server is elsewhere, for messages.

    Raises:
        MissingRuntime: the server does not answer, has no such model, or the model takes no token
            ids.

    Attributes:
        lacks: fields of Sampling that the server does not support.
    """

    def __init__(
        self,
        url: str,
        model: str,
        headers: Mapping[str, str],
        description: Description,
        *,
        max_queue: int,
        setting: str = "engine.arguments.base_url",
    ) -> None:
        self._model = model
        self._transport = connect(url, headers)
        self._slots = description.max_batch_size
        self.room = self._slots + max_queue
        self._streams: dict[PushedStream, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._down: str | None = None
        self._facts = self._look(setting)
        longest = self._facts.max_seq_len if self._facts else description.max_seq_len
        self.max_seq_len = min(longest, description.max_seq_len)
        longest = self._facts.max_input_len if self._facts else description.max_input_len
        self.max_input_len = min(longest, description.max_input_len, self.max_seq_len - 1)
        self.features = self._facts.features if self._facts else contract.FEATURES
        self.lacks = frozenset() if self._facts else frozenset({"min_p"})

    def generate(self, prompt: Sequence[int], sampling: Sampling) -> PushedStream:
        """See base.Engine.generate."""
        if self._down:
            raise EngineFailed(self._down)
        if len(self._streams) >= self.room:
            raise QueueFull
        if self._facts:
            text = contract.write_sampling(sampling, prompt=list(prompt), details=True)
            inputs, outputs = contract.sampling_tensors(text), [contract.DETAILS]
        else:
            inputs = contract.request_tensors(prompt, sampling, self._inputs)
            outputs = [contract.OUTPUT_IDS, contract.LENGTHS]
        stream = PushedStream(lambda: self._leave(stream), sampling.client)
        self._streams[stream] = self._start(self._follow(inputs, outputs, stream, sampling))
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
        self._start(self._transport.close())

    def lose(self, cause: str) -> None:
        """Note that the server does not answer, until it does."""
        if self._down is None:
            self._down = f"{BEHIND} does not answer"
            get_console().print(f"[red]not ready[/]: {self._transport.url}: {cause}")
            self._start(self._wait_for_it())

    def _look(self, setting: str) -> contract.Facts | None:
        """What our own model says of itself; None if it is another's."""
        place = self._transport.url
        try:
            model = self._transport.model(self._model)
        except Unreachable as error:
            raise MissingRuntime(
                f"{place} does not answer KServe's protocol ({error}): start it, or set {setting}"
            ) from error
        except LookupError as error:
            raise MissingRuntime(
                f"{place} has no model {self._model} that is ready ({error}): set "
                "engine.arguments.model to what it calls it"
            ) from error
        self._inputs = model.inputs
        if contract.FACTS in model.parameters and contract.SAMPLING in model.inputs:
            return contract.Facts.read(model.parameters[contract.FACTS])
        needed = {"input_ids", "request_output_len"}
        if not needed <= model.inputs or contract.OUTPUT_IDS not in model.outputs:
            raise MissingRuntime(
                f"{place}: the model {self._model} takes no token ids (input_ids, "
                "request_output_len, output_ids): set engine.arguments.model to the one that does, "
                "such as tensorrt_llm"
            )
        if isinstance(self._transport, Http):
            raise MissingRuntime(
                f"{place}: token ids of {self._model} travel over gRPC only: set {setting}="
                "grpc://HOST:8001"
            )
        return None

    def _leave(self, stream: PushedStream) -> None:
        if task := self._streams.pop(stream, None):
            task.cancel()

    def _start(self, work: Any) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _follow(
        self, inputs: Any, outputs: Sequence[str], stream: PushedStream, sampling: Sampling
    ) -> None:
        """Pass on an answer as it arrives; cancelling closes the stream, which ends it."""
        found = 0
        last: Token | None = None
        answers = self._transport.answers(self._model, inputs, outputs)
        try:
            async for answer in answers:
                tokens = self._take(answer, stream)
                if tokens:
                    found, last = found + len(tokens), tokens[-1]
                    stream.put(tokens)
            ended = last is not None and last.id in sampling.stop_ids
            if not self._facts and not ended and found < sampling.max_tokens:
                # Its answers end before the token that ended them.
                stream.put([Token(min(sampling.stop_ids))] if sampling.stop_ids else [])
            stream.end()
        except Unreachable as error:
            self.lose(str(error))
            stream.end(EngineFailed(self._down or ""))
        except (EngineFailed, QueueFull, ValueError) as error:
            stream.end(error)
        except Exception as error:  # whatever it was: the reader must not wait for more
            cause = f"{type(error).__name__}: {error}"
            stream.end(EngineFailed(f"{BEHIND} sent something unreadable ({cause})"))
        finally:
            self._streams.pop(stream, None)
            await answers.aclose()  # type: ignore[attr-defined]

    def _take(self, answer: Answer, stream: PushedStream) -> list[Token]:
        if self._facts:
            tokens, prompt = contract.read_details(answer[contract.DETAILS][0])
            if prompt is not None:
                stream.prompt_logprobs = prompt
            return tokens
        ids = answer[contract.OUTPUT_IDS]
        length = answer.get(contract.LENGTHS)
        return [Token(token) for token in (ids[: length[0]] if length else ids)]

    async def _wait_for_it(self) -> None:
        while True:
            await asyncio.sleep(PROBE_SECONDS)
            if await self._transport.is_ready(self._model):
                self._down = None
                get_console().print(f"[green]ready[/]: {self._transport.url} answers again")
                return
