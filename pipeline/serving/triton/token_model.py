"""An engine of this pipeline as a model of Triton's Python backend: token ids in, token ids out.

Runs in Triton's process for the model, whose main thread brings requests. The engine lives in an
event loop of another thread, so that requests run together (continuous batching), and each sends
its tokens as they come. Inputs and outputs: kserve/contract.py.
"""

import asyncio
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import uvloop

from pipeline.engines.base import EngineFailed, QueueFull, Sampling, Token
from pipeline.engines.kserve import contract

MAX_QUEUE = 512  # requests that may wait
POLL_SECONDS = 0.1  # between looks at whether clients are still there
ENGINE = "engine"  # below the model's version: what stage=build made


class TokenModel:
    """What Triton calls. utils: its module triton_python_backend_utils."""

    utils: Any

    def initialize(self, args: Mapping[str, str]) -> None:
        """Open the engine; Triton shows the error and does not serve the model if it fails."""
        from pipeline.engines.opening import open_engine

        folder = Path(args["model_repository"], args["model_version"], ENGINE)
        # Triton gives each model a process of its own already.
        self._engine: Any = open_engine(folder, max_queue=MAX_QUEUE, in_process=True).engine
        self._open: dict[Any, asyncio.Task[None]] = {}
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def execute(self, requests: Any) -> None:
        """Start the answers; they send their tokens by themselves."""
        for request in requests:
            sender = request.get_response_sender()
            try:
                asked = _Asked(self.utils, request)
            except (ValueError, TypeError) as error:
                self._refuse(sender, error)
                continue
            self._loop.call_soon_threadsafe(self._begin, sender, asked)

    def finalize(self) -> None:
        """End the engine's process."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.create_task(self._watch())
        self._loop.run_forever()
        self._engine.close()

    def _begin(self, sender: Any, asked: "_Asked") -> None:
        self._open[sender] = self._loop.create_task(self._answer(sender, asked))

    async def _watch(self) -> None:
        """Cancel the answers of clients that have left."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            for sender, task in list(self._open.items()):
                if sender.is_cancelled():
                    task.cancel()

    async def _answer(self, sender: Any, asked: "_Asked") -> None:
        stream = None
        try:
            stream = self._engine.generate(asked.prompt, asked.sampling)
            held: list[Token] = []
            first = True
            async for tokens in stream:
                held += tokens
                if asked.streams:
                    self._send(sender, asked, held, stream.prompt_logprobs if first else None)
                    held, first = [], False
            if held or not asked.streams:
                self._send(sender, asked, held, stream.prompt_logprobs if first else None)
            self._end(sender)
        except asyncio.CancelledError:
            error = self.utils.TritonError("cancelled", self.utils.TritonError.CANCELLED)
            self._end(sender, error)
        except Exception as error:
            self._refuse(sender, error)
        finally:
            if stream is not None:
                stream.cancel()

    def _send(
        self, sender: Any, asked: "_Asked", tokens: list[Token], prompt: list[Token] | None
    ) -> None:
        import numpy as np

        make = self.utils.Tensor
        if asked.details:
            text = contract.write_details(tokens, prompt)
            outputs = [make(contract.DETAILS, np.array([[text]], np.object_))]
        else:
            # As TensorRT-LLM's answers, these end before the token that ended them.
            ids = [token.id for token in tokens if token.id not in asked.sampling.stop_ids]
            if not ids and asked.streams:
                return
            outputs = [
                make(contract.OUTPUT_IDS, np.array([[ids]], np.int32)),
                make(contract.LENGTHS, np.array([[len(ids)]], np.int32)),
            ]
        sender.send(self.utils.InferenceResponse(outputs))

    def _refuse(self, sender: Any, error: Exception) -> None:
        kinds = self.utils.TritonError
        text = str(error)
        if isinstance(error, QueueFull):
            kind, text = kinds.UNAVAILABLE, "UNAVAILABLE: the queue is full"
        elif isinstance(error, EngineFailed):
            kind = kinds.UNAVAILABLE
        elif isinstance(error, ValueError):
            kind, text = kinds.INVALID_ARG, f"INVALID_ARG: {error}"
        else:
            kind, text = kinds.INTERNAL, f"{type(error).__name__}: {error}"
        self._end(sender, kinds(text, kind))

    def _end(self, sender: Any, error: Any = None) -> None:
        """Send the last message. Triton frees the sender with it: nothing may ask it afterwards."""
        self._open.pop(sender, None)
        final = self.utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
        response = (self.utils.InferenceResponse(error=error),) if error else ()
        sender.send(*response, flags=final)


class _Asked:
    """One request: its prompt, how to sample, and what to send.

    Raises:
        ValueError: an input is missing, or has a wrong shape or value.
    """

    def __init__(self, utils: Any, request: Any) -> None:
        inputs = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        self.details, self.streams = False, True
        for name, values in inputs.items():
            if values.shape[:1] != (1,):
                raise ValueError(
                    f"{name} has the shape {list(values.shape)}: send one prompt a request, as the "
                    "engine joins requests itself"
                )
        prompt = None
        if contract.SAMPLING in inputs:
            text = inputs[contract.SAMPLING].reshape(-1)[0]
            self.sampling, more = contract.read_sampling(_text(text))
            self.details = bool(more.get(contract.WITH_DETAILS))
            prompt = more.get(contract.PROMPT)
        else:
            self.sampling = _sampling(inputs)
            self.streams = bool(_first(inputs, "streaming", False))
        if prompt is None and "input_ids" in inputs:
            ids = inputs["input_ids"].reshape(-1)
            length = int(_first(inputs, "input_lengths", len(ids)))
            if not 0 < length <= len(ids):
                raise ValueError(f"input_lengths={length} and {len(ids)} input_ids")
            prompt = ids[:length].tolist()
        if not prompt:
            raise ValueError("input_ids is missing: send the prompt's token ids")
        self.prompt = [int(token) for token in prompt]


def _sampling(inputs: Mapping[str, Any]) -> Sampling:
    """What TensorRT-LLM's inputs ask for."""
    fields: dict[str, Any] = {}
    for name, (_, field) in contract.SCALARS.items():
        if name in inputs:
            fields[field] = inputs[name].reshape(-1)[0].item()
    if "max_tokens" not in fields:
        raise ValueError("request_output_len is missing: send how many tokens an answer may have")
    # Without a choice of its own, TensorRT-LLM takes the likeliest token.
    if fields.get("top_k", 1) == 1 and not fields.get("top_p"):
        fields |= {"temperature": 0.0, "top_k": 0}
        fields.pop("top_p", None)
    elif not fields.get("top_p"):
        fields.pop("top_p", None)
    stops = [int(_first(inputs, "end_id", -1))]
    stops += [word[0] for word in _words(inputs, "stop_words_list", single=True)]
    fields["stop_ids"] = frozenset(token for token in stops if token >= 0)
    fields["bad_words"] = _words(inputs, "bad_words_list")
    return Sampling(**fields)


def _words(inputs: Mapping[str, Any], name: str, *, single: bool = False) -> Any:
    if name not in inputs:
        return ()
    words = contract.read_word_list(inputs[name].reshape(-1).tolist())
    if single and any(len(word) > 1 for word in words):
        raise ValueError(
            f"{name} has a word of several tokens: ask the text model, which compares text"
        )
    return words


def _first(inputs: Mapping[str, Any], name: str, otherwise: Any) -> Any:
    return inputs[name].reshape(-1)[0] if name in inputs else otherwise


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
