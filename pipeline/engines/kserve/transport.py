"""How requests reach a server of KServe's protocol: over gRPC, or over HTTP.

HTTP uses Triton's `generate_stream`, as the protocol itself has no streams over HTTP. That takes
and gives single values only, so token ids travel in `sampling` and `details`: it needs one of our
own models behind it.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import quote, urlsplit

import httpx

from pipeline.client.addresses import is_loopback, without_password
from pipeline.engines.base import EngineFailed, QueueFull
from pipeline.engines.kserve.messages import SERVICE, message
from pipeline.engines.kserve.tensors import BYTES, Tensor, values_of

CONNECT_SECONDS, READ_SECONDS = 10, 600
MOST_BYTES = 64 * 2**20  # of a message
BEHIND = "the server behind this one"  # for clients: only the log has its address
FINAL = "triton_final_response"
WANTS_FINAL = "triton_enable_empty_final_response"

Answer = Mapping[str, list[Any]]  # the values of each output


@dataclass(frozen=True)
class Model:
    """What a server says of a model.

    inputs, outputs: their names. parameters: those of its configuration.
    """

    inputs: frozenset[str]
    outputs: frozenset[str]
    decoupled: bool
    parameters: Mapping[str, str] = field(default_factory=dict)


class Unreachable(Exception):
    """The server does not answer, or is not ready."""


class Transport(Protocol):
    """url: where the server is, without passwords."""

    url: str

    def model(self, name: str) -> Model:
        """
        Raises:
            Unreachable: the server does not answer. LookupError: it has no such model.
        """

    def answers(
        self, name: str, inputs: Sequence[Tensor], outputs: Sequence[str]
    ) -> AsyncIterator[Answer]:
        """The responses to one request; closing the iterator cancels it.

        Raises:
            Unreachable: the server does not answer. ValueError, QueueFull, EngineFailed: its error.
        """

    async def is_ready(self, name: str) -> bool: ...

    async def close(self) -> None: ...


def connect(url: str, headers: Mapping[str, str]) -> Transport:
    """The transport of a URL: grpc://host:8001, grpcs://host:8001 or http://host:8000/v2."""
    if urlsplit(url).scheme in ("grpc", "grpcs"):
        return Grpc(url, headers)
    return Http(url, headers)


def failure(text: str, status: str = "") -> Exception:
    """The error for a server's message. status: HTTP's, gRPC's, or none, as in a stream."""
    text = " ".join(text.split())[:500]
    # A stream's errors have no code, so our models write it before the message.
    code, colon, rest = text.partition(": ")
    if colon and code == "INVALID_ARG":
        return ValueError(rest)
    if (colon and code == "UNAVAILABLE" and rest == "the queue is full") or status == "429":
        return QueueFull(f"{BEHIND}: {rest}")
    if status in ("INVALID_ARGUMENT", "NOT_FOUND", "400", "404"):
        return ValueError(text)
    return EngineFailed(f"{BEHIND}: {text}")


class Grpc:
    """Over gRPC."""

    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        parts = urlsplit(url)
        self._target = f"{parts.hostname}:{parts.port or 8001}"
        self._secure = parts.scheme == "grpcs"
        self.url = f"{parts.scheme}://{self._target}"
        self._metadata = [(name.lower(), value) for name, value in headers.items()]
        self._options: list[tuple[str, int]] = [
            ("grpc.max_send_message_length", MOST_BYTES),
            ("grpc.max_receive_message_length", MOST_BYTES),
            ("grpc.enable_http_proxy", 0 if is_loopback(f"http://{self._target}") else 1),
        ]
        self._channel: Any = None
        self._stream: Any = None
        self._idle: list[Any] = []  # streams without a request

    def model(self, name: str) -> Model:
        import grpc

        with self._open(grpc) as channel:
            try:
                if not self._ask(channel, "ServerReady").ready:
                    raise Unreachable("it is not ready")
                about = self._ask(channel, "ModelMetadata", name=name)
                config = self._ask(channel, "ModelConfig", name=name).config
            except grpc.RpcError as error:
                code, said = error.code().name, error.details()
                if code in ("NOT_FOUND", "INVALID_ARGUMENT") or "unknown model" in said:
                    raise LookupError(said) from error
                raise Unreachable(f"{code}: {said}") from error
        return Model(
            frozenset(tensor.name for tensor in about.inputs),
            frozenset(tensor.name for tensor in about.outputs),
            config.model_transaction_policy.decoupled,
            {key: value.string_value for key, value in config.parameters.items()},
        )

    async def answers(
        self, name: str, inputs: Sequence[Tensor], outputs: Sequence[str]
    ) -> AsyncIterator[Answer]:
        import grpc

        request = message("ModelInferRequest")(model_name=name)
        request.parameters[WANTS_FINAL].bool_param = True
        for tensor in inputs:
            request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
            request.raw_input_contents.append(tensor.raw())
        for output in outputs:
            request.outputs.add(name=output)
        # A stream costs more to open than a request to answer, so it is used again.
        call = self._idle.pop() if self._idle else self._streams()(metadata=self._metadata)
        whole = False
        try:
            await call.write(request)
            while not whole:
                event = await call.read()
                if event is grpc.aio.EOF:
                    raise Unreachable("it closed the stream")
                response = event.infer_response
                whole = bool(event.error_message) or response.parameters[FINAL].bool_param
                if event.error_message:
                    raise failure(event.error_message)
                if response.outputs:
                    yield {
                        tensor.name: values_of(tensor.datatype, raw)
                        for tensor, raw in zip(
                            response.outputs, response.raw_output_contents, strict=True
                        )
                    }
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                raise Unreachable(error.details()) from error
            raise failure(error.details(), error.code().name) from error
        except asyncio.InvalidStateError as error:  # it ended while nobody used it
            raise Unreachable(str(error)) from error
        finally:
            if whole:
                self._idle.append(call)
            else:
                call.cancel()

    async def is_ready(self, name: str) -> bool:
        import grpc

        asked = self._aio().unary_unary(
            SERVICE + "ModelReady",
            message("ModelReadyRequest").SerializeToString,
            message("ModelReadyResponse").FromString,
        )
        try:
            found = await asked(
                message("ModelReadyRequest")(name=name),
                metadata=self._metadata,
                timeout=CONNECT_SECONDS,
            )
        except grpc.RpcError:
            return False
        return bool(found.ready)

    async def close(self) -> None:
        for call in self._idle:
            call.cancel()
        if self._channel is not None:
            await self._channel.close()

    def _open(self, grpc: Any) -> Any:
        if self._secure:
            credentials = grpc.ssl_channel_credentials()
            return grpc.secure_channel(self._target, credentials, self._options)
        return grpc.insecure_channel(self._target, self._options)

    def _aio(self) -> Any:
        """The channel of the event loop in which this is called."""
        import grpc

        if self._channel is None:
            self._channel = (
                self._open(grpc.aio)
                if not self._secure
                else grpc.aio.secure_channel(
                    self._target, grpc.ssl_channel_credentials(), self._options
                )
            )
        return self._channel

    def _streams(self) -> Any:
        if self._stream is None:
            self._stream = self._aio().stream_stream(
                SERVICE + "ModelStreamInfer",
                message("ModelInferRequest").SerializeToString,
                message("ModelStreamInferResponse").FromString,
            )
        return self._stream

    def _ask(self, channel: Any, method: str, **fields: str) -> Any:
        asked = channel.unary_unary(
            SERVICE + method,
            message(f"{method}Request").SerializeToString,
            message(f"{method}Response").FromString,
        )
        request = message(f"{method}Request")(**fields)
        return asked(request, metadata=self._metadata, timeout=CONNECT_SECONDS)


class Http:
    """Over HTTP. url: ends with /v2."""

    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        self._url, self._headers = url.rstrip("/"), dict(headers)
        self.url = without_password(self._url)
        self._client: httpx.AsyncClient | None = None

    def model(self, name: str) -> Model:
        try:
            with httpx.Client(headers=self._headers, timeout=CONNECT_SECONDS) as client:
                ready = client.get(f"{self._url}/health/ready")
                if ready.status_code != 200:
                    raise Unreachable(f"/health/ready answers {ready.status_code}")
                about = client.get(f"{self._url}/models/{quote(name)}")
                if about.status_code in (400, 404):
                    raise LookupError(_error(about.text))
                config = client.get(f"{self._url}/models/{quote(name)}/config")
                described, settings = about.json(), config.json()
        except (httpx.HTTPError, ValueError) as error:
            raise Unreachable(str(error)) from error
        parameters = settings.get("parameters") or {}
        return Model(
            frozenset(tensor["name"] for tensor in described.get("inputs", ())),
            frozenset(tensor["name"] for tensor in described.get("outputs", ())),
            bool((settings.get("model_transaction_policy") or {}).get("decoupled")),
            {key: value.get("string_value", "") for key, value in parameters.items()},
        )

    async def answers(
        self, name: str, inputs: Sequence[Tensor], outputs: Sequence[str]
    ) -> AsyncIterator[Answer]:
        body = {tensor.name: tensor.values[0] for tensor in inputs}
        url = f"{self._url}/models/{quote(name)}/generate_stream"
        try:
            async with self._open().stream("POST", url, json=body) as answer:
                if answer.status_code != 200:
                    await answer.aread()
                    raise failure(_error(answer.text), str(answer.status_code))
                async for line in answer.aiter_lines():
                    if not line.startswith("data:"):
                        continue
                    event = json.loads(line.removeprefix("data:"))
                    if "error" in event:
                        raise failure(str(event["error"]))
                    found = {key: [event[key].encode()] for key in outputs if key in event}
                    if found:
                        yield found
        except httpx.HTTPError as error:
            raise Unreachable(f"{type(error).__name__} {error}") from error

    async def is_ready(self, name: str) -> bool:
        try:
            answer = await self._open().get(f"{self._url}/models/{quote(name)}/ready")
        except httpx.HTTPError:
            return False
        return answer.status_code == 200

    async def close(self) -> None:
        if self._client:
            await self._client.aclose()

    def _open(self) -> httpx.AsyncClient:
        self._client = self._client or httpx.AsyncClient(
            headers=self._headers,
            timeout=httpx.Timeout(READ_SECONDS, connect=CONNECT_SECONDS),
            limits=httpx.Limits(max_connections=None),
        )
        return self._client


def _error(text: str) -> str:
    try:
        return str(json.loads(text.removeprefix("data:"))["error"])
    except (ValueError, KeyError, TypeError):
        return " ".join(text.split())[:200]


__all__ = ["BYTES", "Answer", "Grpc", "Http", "Model", "Transport", "Unreachable", "connect"]
