"""Spans, received by a small OTLP collector."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from pipeline.core.paths import ROOT
from pipeline.engines.batching.scheduler import BatchingEngine
from pipeline.models.chat.renderer import Chat
from pipeline.serving.app import create_app
from pipeline.serving.middleware import tracing
from pipeline.serving.middleware.stack import MiddlewareStack
from pipeline.serving.middleware.tracing import Tracing
from tests.unit.model_folders import make_model_folder
from tests.unit.serving.asgi import ask
from tests.unit.serving.fake_models import ListModel, say

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def received() -> Iterator[list[ExportTraceServiceRequest]]:
    got: list[ExportTraceServiceRequest] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                import gzip

                body = gzip.decompress(body)
            got.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Collector)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    with pytest.MonkeyPatch.context() as patch:
        url = f"http://127.0.0.1:{server.server_address[1]}"
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        patch.setenv("OTEL_SERVICE_NAME", "the-bank")
        yield got
    server.shutdown()
    server.server_close()


def test_a_request_is_a_span_of_the_callers_trace_with_its_phases(
    received: list[ExportTraceServiceRequest], tmp_path_factory: pytest.TempPathFactory
) -> None:
    chat = Chat.load(make_model_folder(tmp_path_factory.mktemp("traces"), "demo"))
    engine = BatchingEngine(
        ListModel(say(chat, "Five euros."), max_seq_len=96), max_input_len=60, max_queue=4
    )
    traces = Tracing()
    app = create_app(
        engine, chat, model="bank", slots=4, middleware=MiddlewareStack(tracing=traces)
    )
    body = {"model": "bank", "messages": [{"role": "user", "content": "Hello"}]}
    headers = {"traceparent": PARENT, "x-request-id": "it"}
    for path in ("/health/live", "/metrics", "/v1/health/ready"):
        ask(app, path=path)
    answer = ask(app, "POST", "/v1/chat/completions", json=body, headers=headers).json()
    traces.close()
    engine.close()

    (group,) = [g for request in received for g in request.resource_spans]
    resource = {a.key: a.value.string_value for a in group.resource.attributes}
    assert resource["service.name"] == "the-bank"
    spans = {s.name: s for scope in group.scope_spans for s in scope.spans}
    phases = [spans.pop(name) for name in ("queue", "prefill", "decode")]
    (request,) = spans.values()
    assert {s.trace_id.hex() for s in [request, *phases]} == {PARENT.split("-")[1]}
    assert request.parent_span_id.hex() == PARENT.split("-")[2]
    assert {s.parent_span_id for s in phases} == {request.span_id}
    assert phases[0].end_time_unix_nano == phases[1].start_time_unix_nano
    assert phases[1].end_time_unix_nano == phases[2].start_time_unix_nano
    for phase in phases:
        begin, end = phase.start_time_unix_nano, phase.end_time_unix_nano
        slack = 10_000_000  # the phases' clock is another: time.perf_counter
        assert request.start_time_unix_nano - slack <= begin <= end
        assert end <= request.end_time_unix_nano + slack
    known = {a.key: a.value for a in request.attributes}
    assert known["request_id"].string_value == "it"
    assert known["gen_ai.request.model"].string_value == "bank"
    assert known["gen_ai.usage.output_tokens"].int_value == answer["usage"]["completion_tokens"]
    assert "Hello" not in str(request)


@pytest.mark.parametrize(("environment", "is_is_enabled"), [
    ({}, False),
    ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
    ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x:4318"}, True),
    ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://x:4318/v1/traces"}, True),
    ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x:4318", "OTEL_SDK_DISABLED": "true"}, False),
])  # fmt: skip
def test_traces_need_an_endpoint(environment: Any, is_is_enabled: bool) -> None:
    assert tracing.is_enabled(environment) == is_is_enabled


def test_a_server_without_traces_imports_nothing_of_them() -> None:
    program = "import sys, pipeline.serving.server; print('opentelemetry.sdk' in sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "False"
