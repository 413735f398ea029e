"""Serves an engine's folder with uvicorn until a signal, and finishes the requests in progress."""

import gc
import logging
import os
import resource
import signal
import socket
import time
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from pydantic import ValidationError

from pipeline.config.serve import ServeConfig
from pipeline.core.artifact import open_artifact
from pipeline.core.errors import ArtifactError, ConfigError, DataError
from pipeline.engines.description import FILE, Description
from pipeline.engines.hf.scorer import activation_of
from pipeline.engines.opening import lacks_memory, open_engine
from pipeline.models.chat.renderer import Chat
from pipeline.models.chat.tokenizer import read_json
from pipeline.serving.address import base_url
from pipeline.serving.app import create_app
from pipeline.serving.following import Follower, Generation
from pipeline.serving.guardrails.guard import Guardrails
from pipeline.serving.logs import server_log
from pipeline.serving.metrics import Collectors
from pipeline.serving.middleware.http_limits import HttpConfig, HttpLimits
from pipeline.serving.middleware.request_log import InFlight
from pipeline.serving.middleware.stack import MiddlewareStack
from pipeline.serving.openai.protocol import CompletionRequest
from pipeline.serving.rag.collections import Collections
from pipeline.serving.tls import Certificate
from pipeline.serving.versions import Followed, Release, ServedVersion
from pipeline.serving.webhook import SECRET

log = logging.getLogger("pipeline.serving")

BACKLOG = 2048  # connections that can be accepted before they are counted
OTHER_FILES = 256  # files that the server itself opens


def serve(
    folder: Path,
    listening: socket.socket,
    *,
    model: str,
    settings: ServeConfig,
    description: Description | None = None,
    version: ServedVersion | None = None,
    followed: Followed | None = None,
    announce: Callable[[], None] = lambda: None,
) -> bool:
    """Serve an engine on a socket until SIGINT or SIGTERM, then finish the requests in progress.

    Args:
        description: of an HF folder to serve directly; None for an engine of `stage=build`.
        version: the registered version that the engine is of.
        followed: an alias of the registry, to whose version the server changes over as it moves.
        announce: called when the server is ready.

    Returns:
        Whether all requests in progress were finished. A second SIGINT does not wait for them, and
        the engine may fail.

    Raises:
        ArtifactError: the engine is incomplete, or was built for another machine.
        ConfigError: a file or folder that a setting names cannot be used.
        DataError: the model's generation_config.json has an invalid value.
    """
    begin = time.monotonic()
    with server_log():
        log.info("loading", extra={"model": model, "folder": str(folder)})
        _allow_files(settings.max_connections)
        certificate = Certificate.from_config(settings)
        middleware = MiddlewareStack.from_config(settings)
        make = partial(_application, model=model, settings=settings, middleware=middleware)
        app: FastAPI | Follower
        if followed and version:
            app = _following(make, Release(folder, version), followed, settings, listening)
        else:
            app = make(folder, description=description, version=version)
        server = _server(app, settings, certificate)
        url = base_url(listening, secure=certificate is not None)

        def ready() -> None:
            # What is there now stays: without it the collector's passes take a millisecond.
            gc.collect()
            gc.freeze()
            facts = {"url": url, "seconds": round(time.monotonic() - begin, 1)}
            log.info("ready", extra={"model": model, **facts})
            announce()

        server.app_state.readiness.announce = ready
        try:
            server.run(sockets=[listening])
        finally:
            middleware.close()
    return server.finished


def _allow_files(connections: int) -> None:
    """Raise the limit of open files, of which each connection is one.

    Beyond that limit the system closes connections without a response and without a log line.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + BACKLOG + OTHER_FILES
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    if limit < connections + OTHER_FILES:
        log.warning(
            "serve.max_connections=%d needs more open files than the system's limit of %d: raise "
            "the hard limit (ulimit -Hn), or lower the setting",
            connections,
            limit,
        )


def _following(
    make: Callable[..., FastAPI],
    first: Release,
    followed: Followed,
    settings: ServeConfig,
    listening: socket.socket,
) -> Follower:
    in_flight, collectors = InFlight(), Collectors()

    def load(release: Release) -> FastAPI:
        return make(
            release.folder, version=release.version, in_flight=in_flight, collectors=collectors
        )

    host, port = listening.getsockname()[:2]
    public = socket.gethostname() if host in ("0.0.0.0", "::") else host
    return Follower(
        Generation(load(first), first.version),
        load,
        lambda release: lacks_memory(release.folder),
        followed,
        in_flight,
        seconds=settings.follow_seconds,
        drain=settings.request_timeout,
        secret=os.environ.get(SECRET, ""),
        address=f"{public}:{port}",
    )


def _application(
    folder: Path,
    *,
    model: str,
    settings: ServeConfig,
    middleware: MiddlewareStack,
    description: Description | None = None,
    version: ServedVersion | None = None,
    in_flight: InFlight | None = None,
    collectors: Collectors | None = None,
) -> FastAPI:
    guardrails = Guardrails.from_config(settings, model)
    collections = Collections.from_config(settings.rag)
    if description is None:
        if folder.is_dir() and not (folder / FILE).is_file():
            raise ArtifactError(
                f"{folder} has no engine: build one with `python -m pipeline stage=build`, or give "
                "an engine that serves an HF folder directly, such as engine.name=hf"
            )
        open_artifact(folder, stage="build").require("engine")
    if settings.adapters and not settings.adapters.is_dir():
        raise ConfigError(f"serve.adapters={settings.adapters} is not a folder: give one, or null")
    defaults = _sampling_defaults(folder)
    served = open_engine(folder, max_queue=settings.max_queue, description=description)
    if settings.adapters and "adapters" not in served.engine.features:
        served.engine.close()
        raise ConfigError(
            f"serve.adapters={settings.adapters}: the {served.description.runtime} engine was "
            "opened without support for LoRA adapters: serve the model's HF folder with "
            "engine.name=hf, or with vllm or trtllm and engine.lora_rank"
        )
    if middleware.keyring and "turns" not in served.engine.features:
        try:
            middleware.keyring.refuse_shares(served.description.runtime)
        except ConfigError:
            served.engine.close()
            raise
    for name, given in (("guardrails", guardrails), ("rag.indexes", collections)):
        if given and not isinstance(served.chat, Chat):
            served.engine.close()
            raise ConfigError(f"serve.{name} is set, and this model generates no text")
    return create_app(
        served.engine,
        served.chat,
        model=model,
        slots=served.description.max_batch_size,
        runtime=served.description.runtime,
        profile=_profile_name(served.description),
        defaults=defaults,
        adapters=settings.adapters,
        adapters_seconds=settings.adapters_seconds,
        json_whitespace=settings.json_whitespace,
        response_store=settings.response_store,
        tool_parser=settings.tool_parser,
        reasoning_parser=settings.reasoning_parser,
        middleware=middleware,
        version=version,
        in_flight=in_flight,
        collectors=collectors,
        guardrails=guardrails,
        collections=collections,
        activation=activation_of(folder) if "scores" in served.engine.features else "Sigmoid",
    )


def _server(
    app: FastAPI | Follower, settings: ServeConfig, certificate: Certificate | None
) -> "_Server":
    return _Server(
        HttpConfig(
            app,
            HttpLimits(
                connections=settings.max_connections,
                header_bytes=settings.max_header_bytes,
                header_seconds=settings.header_timeout,
                stalled_seconds=settings.stalled_timeout,
            ),
            backlog=BACKLOG,
            timeout_keep_alive=settings.keep_alive_timeout,
            ws="none",
            log_config=None,
            log_level="error",  # its warnings are about what clients send
            access_log=False,
            server_header=False,
            lifespan="on",
            **(certificate.uvicorn_settings() if certificate else {}),
        ),
        settings.drain_delay,
        certificate,
    )


def _profile_name(description: Description) -> str:
    return f"{description.runtime}-{description.precision}-tp{description.tensor_parallel}"


def _sampling_defaults(folder: Path) -> dict[str, float]:
    """The defaults in the model's generation_config.json, as vLLM uses them.

    Raises:
        DataError: the file cannot be read, or has a value that no request may have.
    """
    file = folder / "generation_config.json"
    found = read_json(file, required=False)
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
    given = {name: found[name] for name in names if found.get(name) is not None}
    try:
        CompletionRequest.model_validate({"model": "any", "prompt": "any", **given})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise DataError(
            f"{file}: {first['loc'][0]}={first['input']!r}: {first['msg']}: correct or remove it"
        ) from None
    return given


class _Server(uvicorn.Server):
    """Shuts down gracefully: it is not ready from the first signal on, and ends when it is idle.

    Until then it keeps listening, so that a load balancer gets 503 and not a closed port. For
    `delay` seconds it accepts new requests, which the balancer sends before its next health check.
    uvicorn would end the process by the signal; here, a requested stop is not a failure.
    """

    def __init__(
        self, config: HttpConfig, delay: float, certificate: Certificate | None = None
    ) -> None:
        super().__init__(config)
        self._delay, self._certificate = delay, certificate
        self._stopped: float | None = None

    @property
    def app_state(self) -> Any:
        return self.config.app.state  # type: ignore[union-attr]

    @property
    def finished(self) -> bool:
        """Whether every request that was in progress at the stop was finished."""
        return not self.force_exit and not self.app_state.in_flight.failed

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        before = {s: signal.signal(s, self.handle_exit) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: types.FrameType | None) -> None:
        if self._stopped is not None and sig == signal.SIGINT:
            self.should_exit = self.force_exit = True
        log.info("shutting down", extra={"answers_in_progress": self.app_state.in_flight.count})
        if self._stopped is None:
            self._stopped = time.monotonic()
            self.app_state.in_flight.failed = 0
        self.app_state.readiness.end()
        self._drained()

    async def on_tick(self, counter: int) -> bool:
        if self._certificate and self.config.ssl:
            self._certificate.refresh(self.config.ssl)
        return self._drained() or await super().on_tick(counter)

    def _drained(self) -> bool:
        """Whether the stopped server is idle. After `delay` seconds it refuses new requests."""
        in_flight = self.app_state.in_flight
        if self._stopped is not None and time.monotonic() - self._stopped >= self._delay:
            in_flight.draining = True
        return in_flight.draining and not in_flight.count
