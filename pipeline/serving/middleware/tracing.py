"""Traces over OTLP, when OTEL_EXPORTER_OTLP_ENDPOINT says where to; no SDK is imported otherwise.

Each request is a span of OpenTelemetry's ASGI instrumentation, which goes on with the caller's own
trace (`traceparent`), and below it are the phases of its answer: queue, prefill, decode. Everything
else is set by OpenTelemetry's own variables: OTEL_SERVICE_NAME, OTEL_EXPORTER_OTLP_HEADERS,
OTEL_TRACES_SAMPLER and so on. Attributes are named by its conventions for generative AI:
https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/
"""

import time
from collections.abc import Mapping
from typing import Any

from starlette.types import ASGIApp

from pipeline.serving.middleware.request_log import QUIET, Call

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
SERVICE = "pipeline-serving"


def wanted(environment: Mapping[str, str]) -> bool:
    off = environment.get("OTEL_SDK_DISABLED", "").lower() == "true"
    return not off and any(environment.get(name) for name in ENDPOINTS)


class Tracing:
    """A provider that sends spans in batches, from a thread of its own."""

    def __init__(self) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        named = Resource({"service.name": SERVICE}).merge(OTELResourceDetector().detect())
        self._provider: TracerProvider = TracerProvider(resource=named)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("pipeline.serving")

    def around(self, app: ASGIApp) -> ASGIApp:
        """An application whose requests are spans."""
        from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware

        return OpenTelemetryMiddleware(
            app,
            excluded_urls=",".join(f"{path}$|{path}/" for path in QUIET),
            tracer_provider=self._provider,
            exclude_spans=["receive", "send"],
        )

    def ended(self, call: Call) -> None:
        """Complete the current request's span with what became of it."""
        from opentelemetry import trace

        span = trace.get_current_span()
        known: dict[str, Any] = {
            "request_id": call.id,
            "gen_ai.request.model": call.model,
            "gen_ai.usage.input_tokens": call.prompt_tokens or None,
            "gen_ai.usage.output_tokens": call.completion_tokens or None,
            "gen_ai.response.finish_reasons": call.finish_reasons or None,
            "error.type": call.error,
        }
        span.set_attributes({name: value for name, value in known.items() if value is not None})
        begun = time.time_ns() - int(call.seconds * 1e9)
        points = [("queue", call.asked), ("prefill", call.queued), ("decode", call.first_token)]
        ends = [point for _, point in points[1:]] + [call.last_token]
        for (name, start), end in zip(points, ends, strict=True):
            if start is not None and end is not None:
                phase = self._tracer.start_span(name, start_time=begun + int(start * 1e9))
                phase.end(begun + int(end * 1e9))

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()
