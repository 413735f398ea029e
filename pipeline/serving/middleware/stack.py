"""What surrounds the API in production, from the serve section of the configuration."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fastapi import FastAPI

from pipeline.config.serve import ServeConfig
from pipeline.serving.keys import Keyring
from pipeline.serving.middleware.auth import Door
from pipeline.serving.middleware.recording import Recorder
from pipeline.serving.middleware.request_limits import Bounded, Bounds
from pipeline.serving.middleware.request_log import Calls
from pipeline.serving.middleware.tracing import Tracing, wanted
from pipeline.serving.middleware.transcripts import Transcripts


@dataclass(frozen=True)
class Operations:
    """Layers around the application; None leaves one out."""

    keyring: Keyring | None = None
    bounds: Bounds | None = None
    tracing: Tracing | None = None
    recorder: Recorder | None = None
    log_content: bool = False

    @classmethod
    def configured(
        cls, settings: ServeConfig, environment: Mapping[str, str] = os.environ
    ) -> "Operations":
        """
        Raises:
            ConfigError: a file that a setting names cannot be used.
        """
        keyring = Keyring(settings.keys_file, environment)
        return cls(
            keyring=keyring if keyring.asks else None,
            bounds=Bounds(
                header_bytes=settings.max_header_bytes,
                body_bytes=settings.max_body_bytes,
                body_seconds=settings.body_timeout,
                request_seconds=settings.request_timeout,
            ),
            tracing=Tracing() if wanted(environment) else None,
            recorder=Recorder(settings.record) if settings.record else None,
            log_content=settings.log_content,
        )

    def add_to(self, app: FastAPI, failed: Callable[[int], None]) -> None:
        """Add the layers, the innermost first. `failed` is told the status of each failure."""
        if self.recorder or self.log_content:
            record = self.recorder.record if self.recorder else None
            app.add_middleware(Transcripts, record=record, log=self.log_content)
        if self.bounds:
            app.add_middleware(Bounded, bounds=self.bounds)
        if self.keyring:
            app.add_middleware(Door, keyring=self.keyring)
        ended = self.tracing.ended if self.tracing else None
        app.add_middleware(Calls, in_flight=app.state.in_flight, failed=failed, ended=ended)
        if self.tracing:
            app.add_middleware(self.tracing.around)

    def close(self) -> None:
        """Send and write what is left."""
        if self.recorder:
            self.recorder.close()
        if self.tracing:
            self.tracing.close()


NO_OPERATIONS = Operations()
