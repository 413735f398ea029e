"""The middleware around the API, as the serve section of the configuration describes it."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fastapi import FastAPI

from pipeline.config.serve import ServeConfig
from pipeline.serving.keys import Keyring
from pipeline.serving.middleware.auth import AuthMiddleware
from pipeline.serving.middleware.recording import Recorder
from pipeline.serving.middleware.request_limits import RequestLimits, RequestLimitsMiddleware
from pipeline.serving.middleware.request_log import RequestLogMiddleware
from pipeline.serving.middleware.tracing import Tracing, is_enabled
from pipeline.serving.middleware.transcripts import TranscriptMiddleware


@dataclass(frozen=True)
class MiddlewareStack:
    """The layers around the application. None leaves one out."""

    keyring: Keyring | None = None
    limits: RequestLimits | None = None
    tracing: Tracing | None = None
    recorder: Recorder | None = None
    log_content: bool = False

    @classmethod
    def from_config(
        cls, settings: ServeConfig, environment: Mapping[str, str] = os.environ
    ) -> "MiddlewareStack":
        """
        Raises:
            ConfigError: a file or folder that a setting names cannot be used.
        """
        keyring = Keyring(settings.keys_file, environment)
        return cls(
            keyring=keyring if keyring.requires_key else None,
            limits=RequestLimits(
                header_bytes=settings.max_header_bytes,
                body_bytes=settings.max_body_bytes,
                body_seconds=settings.body_timeout,
                request_seconds=settings.request_timeout,
            ),
            tracing=Tracing() if is_enabled(environment) else None,
            recorder=Recorder(settings.record) if settings.record else None,
            log_content=settings.log_content,
        )

    def add_to(self, app: FastAPI, failed: Callable[[int], None]) -> None:
        """Add the layers, the innermost first. `failed` is called with each failure's status."""
        if self.recorder or self.log_content:
            record = self.recorder.record if self.recorder else None
            app.add_middleware(TranscriptMiddleware, record=record, log=self.log_content)
        if self.limits:
            app.add_middleware(RequestLimitsMiddleware, limits=self.limits)
        if self.keyring:
            app.add_middleware(AuthMiddleware, keyring=self.keyring)
        ended = self.tracing.finish_span if self.tracing else None
        app.add_middleware(
            RequestLogMiddleware, in_flight=app.state.in_flight, failed=failed, ended=ended
        )
        if self.tracing:
            app.add_middleware(self.tracing.wrap)

    def close(self) -> None:
        """Write and send what is still buffered."""
        if self.recorder:
            self.recorder.close()
        if self.tracing:
            self.tracing.close()


NO_MIDDLEWARE = MiddlewareStack()
