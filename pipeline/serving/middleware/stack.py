"""The middleware around the API, as the serve section of the configuration describes it."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fastapi import FastAPI

from pipeline.config.serve import ServeConfig
from pipeline.core.errors import ConfigError
from pipeline.serving.feedback import Feedback
from pipeline.serving.keyring import Keyring
from pipeline.serving.middleware.audit import AuditLog, AuditMiddleware
from pipeline.serving.middleware.auth import OPEN_PATHS, AuthMiddleware
from pipeline.serving.middleware.cors import add_cors
from pipeline.serving.middleware.daily_usage import DailyUsage
from pipeline.serving.middleware.idempotency import IdempotencyMiddleware, KeptAnswers
from pipeline.serving.middleware.rate_limits import RateLimiter
from pipeline.serving.middleware.recording import Recorder
from pipeline.serving.middleware.request_limits import RequestLimits, RequestLimitsMiddleware
from pipeline.serving.middleware.request_log import RequestLogMiddleware
from pipeline.serving.middleware.tracing import Tracing, is_enabled
from pipeline.serving.middleware.transcripts import TranscriptMiddleware


@dataclass(frozen=True)
class MiddlewareStack:
    """The layers around the application. None leaves one out.

    A server whose versions follow one another has one stack for all of them: limits, budgets and
    kept answers go on when the version changes.
    """

    keyring: Keyring | None = None
    rate_limiter: RateLimiter | None = None
    limits: RequestLimits | None = None
    tracing: Tracing | None = None
    recorder: Recorder | None = None
    feedback: Feedback | None = None
    log_content: bool = False
    audit: AuditLog | None = None
    kept_answers: KeptAnswers | None = None
    cors_origins: tuple[str, ...] = ()

    @classmethod
    def from_config(
        cls, settings: ServeConfig, environment: Mapping[str, str] = os.environ
    ) -> "MiddlewareStack":
        """
        Raises:
            ConfigError: a file or folder that a setting names cannot be used.
        """
        keyring = Keyring(settings.keys_file, environment)
        if settings.usage_file and not keyring.requires_key:
            raise ConfigError(
                f"serve.usage_file={settings.usage_file} has no effect without keys: set "
                "serve.keys_file"
            )
        audit = AuditLog(settings.audit_log) if settings.audit_log else None
        if audit:
            audit.add("server_started", {"keys": keyring.names})
            keyring.on_change = lambda changes: audit.add("keys_changed", changes)
        kept = settings.idempotency_seconds
        return cls(
            keyring=keyring if keyring.requires_key else None,
            rate_limiter=RateLimiter(DailyUsage(settings.usage_file)),
            limits=RequestLimits(
                header_bytes=settings.max_header_bytes,
                body_bytes=settings.max_body_bytes,
                body_seconds=settings.body_timeout,
                request_seconds=settings.request_timeout,
            ),
            tracing=Tracing() if is_enabled(environment) else None,
            recorder=Recorder(settings.record) if settings.record else None,
            feedback=Feedback(settings.feedback) if settings.feedback else None,
            log_content=settings.log_content,
            audit=audit,
            kept_answers=KeptAnswers(kept) if kept else None,
            cors_origins=settings.cors_origins,
        )

    def add_to(self, app: FastAPI, failed: Callable[[int], None]) -> None:
        """Add the layers, the innermost first. `failed` is called with each failure's status."""
        if self.recorder or self.log_content:
            record = self.recorder.record if self.recorder else None
            app.add_middleware(TranscriptMiddleware, record=record, log=self.log_content)
        if self.kept_answers:
            app.add_middleware(IdempotencyMiddleware, answers=self.kept_answers)
        if self.limits:
            app.add_middleware(RequestLimitsMiddleware, limits=self.limits)
        if self.keyring:
            app.add_middleware(AuthMiddleware, keyring=self.keyring, rate_limiter=self.rate_limiter)
        if self.audit:
            app.add_middleware(AuditMiddleware, audit=self.audit, open_paths=OPEN_PATHS)
        ended = self.tracing.finish_span if self.tracing else None
        app.add_middleware(
            RequestLogMiddleware, in_flight=app.state.in_flight, failed=failed, ended=ended
        )
        if self.cors_origins:
            add_cors(app, self.cors_origins)
        if self.tracing:
            app.add_middleware(self.tracing.wrap)

    def close(self) -> None:
        """Write and send what is still buffered."""
        if self.recorder:
            self.recorder.close()
        if self.feedback:
            self.feedback.close()
        if self.tracing:
            self.tracing.close()
        if self.rate_limiter:
            self.rate_limiter.close()
        if self.audit:
            self.audit.close()


NO_MIDDLEWARE = MiddlewareStack()
