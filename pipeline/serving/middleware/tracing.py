"""Traces over OTLP, if OTEL_EXPORTER_OTLP_ENDPOINT is set. Otherwise no SDK is imported.

Each request is a span of OpenTelemetry's ASGI instrumentation, which continues the caller's trace
(`traceparent`). Its child spans are the phases of generation: queue, prefill, decode. Everything
else is set by OpenTelemetry's own variables: OTEL_SERVICE_NAME, OTEL_EXPORTER_OTLP_HEADERS,
OTEL_TRACES_SAMPLER and so on. Attributes follow its conventions for generative AI:
https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/
"""

import time
from collections.abc import Mapping
from typing import Any

from starlette.types import ASGIApp

from pipeline.serving.middleware.request_context import RequestContext
from pipeline.serving.middleware.request_log import UNLOGGED_PATHS

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
SERVICE = "pipeline-serving"


def is_enabled(environment: Mapping[str, str]) -> bool:
    off = environment.get("OTEL_SDK_DISABLED", "").lower() == "true"
    return not off and any(environment.get(name) for name in ENDPOINTS)


class Tracing:
    """Sends spans in batches, in a thread of its own."""

    def __init__(self) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        named = Resource({"service.name": SERVICE}).merge(OTELResourceDetector().detect())
        self._provider: TracerProvider = TracerProvider(resource=named)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("pipeline.serving")

    def wrap(self, app: ASGIApp) -> ASGIApp:
        """The application with a span for each request."""
        from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware

        return OpenTelemetryMiddleware(
            app,
            excluded_urls=",".join(f"{path}$|{path}/" for path in UNLOGGED_PATHS),
            tracer_provider=self._provider,
            exclude_spans=["receive", "send"],
        )

    def finish_span(self, context: RequestContext) -> None:
        """Add the request's attributes and phases to its span."""
        from opentelemetry import trace

        span = trace.get_current_span()
        known: dict[str, Any] = {
            "request_id": context.id,
            "gen_ai.request.model": context.model,
            "gen_ai.usage.input_tokens": context.prompt_tokens or None,
            "gen_ai.usage.output_tokens": context.completion_tokens or None,
            "gen_ai.response.finish_reasons": context.finish_reasons or None,
            "error.type": context.error,
        }
        span.set_attributes({name: value for name, value in known.items() if value is not None})
        request_start = time.time_ns() - int(context.seconds * 1e9)
        phases = [
            ("queue", context.submitted),
            ("prefill", context.scheduled),
            ("decode", context.first_token),
        ]
        ends = [start for _, start in phases[1:]] + [context.last_token]
        for (name, start), end in zip(phases, ends, strict=True):
            if start is not None and end is not None:
                phase = self._tracer.start_span(name, start_time=request_start + int(start * 1e9))
                phase.end(request_start + int(end * 1e9))

    def close(self) -> None:
        """Send the spans that are still buffered."""
        self._provider.shutdown()
