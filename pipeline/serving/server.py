"""An engine's folder on a socket by uvicorn, until a signal; answers in progress are finished."""

import json
import signal
import socket
import time
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from pipeline.artifact import open_artifact
from pipeline.config import ServeConfig
from pipeline.serving.app import create_app
from pipeline.serving.description import Description
from pipeline.serving.logs import json_logs
from pipeline.serving.open import open_engine
from pipeline.serving.operations import Operations
from pipeline.serving.wire import WireBounds, WireConfig


def serve(
    folder: Path,
    listening: socket.socket,
    *,
    model: str,
    settings: ServeConfig,
    description: Description | None = None,
) -> bool:
    """Serve an engine on a socket until SIGINT or SIGTERM; answers in progress are finished.

    Args:
        description: of an HF folder to serve as it is; None for an engine of `stage=build`.

    Returns:
        Whether they were: a second SIGINT does not wait for them.

    Raises:
        ArtifactError: the engine is not whole, or not for this machine.
        ConfigError: a file that a setting names cannot be used.
    """
    operations = Operations.configured(settings)
    if description is None:
        open_artifact(folder, stage="build").require("engine")
    served = open_engine(folder, max_queue=settings.max_queue, description=description)
    app = create_app(
        served.engine,
        served.chat,
        model=model,
        slots=served.description.max_batch_size,
        runtime=served.description.runtime,
        defaults=_sampling_defaults(folder),
        operations=operations,
    )
    server = _Server(
        WireConfig(
            app,
            WireBounds(
                connections=settings.max_connections,
                header_bytes=settings.max_header_bytes,
                header_seconds=settings.header_timeout,
                stalled_seconds=settings.stalled_timeout,
            ),
            timeout_keep_alive=settings.keep_alive_timeout,
            ws="none",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            lifespan="on",
        ),
        settings.drain_delay,
    )
    with json_logs():
        server.run(sockets=[listening])
    return not server.force_exit


def _sampling_defaults(folder: Path) -> dict[str, float]:
    """What the model's own generation_config.json says, as vLLM takes it."""
    file = folder / "generation_config.json"
    given = json.loads(file.read_text()) if file.is_file() else {}
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
    return {name: given[name] for name in names if given.get(name) is not None}


class _Server(uvicorn.Server):
    """Drains: the first signal makes it not ready, and it ends when no answer is in progress.

    Until then it goes on listening, so that a load balancer hears 503 and not a closed port. New
    requests are taken for `delay` seconds more: those that the balancer sends before it has asked.
    uvicorn would end the process by the signal that stopped it; to be stopped is no failure here.
    """

    def __init__(self, config: WireConfig, delay: float) -> None:
        super().__init__(config)
        self._delay = delay
        self._stopped: float | None = None

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
        self._stopped = self._stopped or time.monotonic()
        self.config.app.state.readiness.end()  # type: ignore[union-attr]
        self._drained()

    async def on_tick(self, counter: int) -> bool:
        return self._drained() or await super().on_tick(counter)

    def _drained(self) -> bool:
        """Whether a stopped server has nothing left to do; from `delay` on it takes nothing new."""
        in_flight = self.config.app.state.in_flight  # type: ignore[union-attr]
        if self._stopped is not None and time.monotonic() - self._stopped >= self._delay:
            in_flight.draining = True
        return in_flight.draining and not in_flight.count
