"""An engine's folder on a socket by uvicorn, until a signal; answers in progress are finished."""

import json
import os
import signal
import socket
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from pipeline.artifact import open_artifact
from pipeline.serving.address import API_KEY
from pipeline.serving.app import create_app
from pipeline.serving.open import open_engine


def serve(folder: Path, listening: socket.socket, *, model: str, max_queue: int) -> bool:
    """Serve an engine on a socket until SIGINT or SIGTERM; answers in progress are finished.

    Returns:
        Whether they were: a second SIGINT does not wait for them.

    Raises:
        ArtifactError: the engine is not whole, or not for this machine.
    """
    artifact = open_artifact(folder, stage="build").require("engine")
    served = open_engine(artifact.path, max_queue=max_queue)
    app = create_app(
        served.engine,
        served.chat,
        model=model,
        slots=served.description.max_batch_size,
        defaults=_sampling_defaults(folder),
        api_key=os.environ.get(API_KEY),
    )
    settings = uvicorn.Config(app, log_level="warning", access_log=False, lifespan="on")
    server = _Server(settings)
    server.run(sockets=[listening])
    return not server.force_exit


def _sampling_defaults(folder: Path) -> dict[str, float]:
    """What the model's own generation_config.json says, as vLLM takes it."""
    file = folder / "generation_config.json"
    given = json.loads(file.read_text()) if file.is_file() else {}
    names = ("temperature", "top_p", "top_k")
    return {name: given[name] for name in names if given.get(name) is not None}


class _Server(uvicorn.Server):
    """uvicorn ends a process by the signal that stopped it; to be stopped is no failure here."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        before = {s: signal.signal(s, self.handle_exit) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: types.FrameType | None) -> None:
        service = self.config.app.state.service  # type: ignore[union-attr]
        service.ready, service.not_ready = False, "shutting down"
        super().handle_exit(sig, frame)
