"""What servers have counted, as /metrics says it."""

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from pipeline.config.defaults import default_config
from pipeline.deployment.canary.counts import Arm, read_counts
from pipeline.deployment.canary.criteria import traffic_criteria
from pipeline.deployment.canary.sequential import Counts
from pipeline.engines.base import Load
from pipeline.serving.metrics import Metrics

E2E = "e2e_request_latency_seconds"


class Server:
    """Answers as our server does, with real metrics. up: whether it answers; ready: its health."""

    def __init__(self) -> None:
        self.up = self.ready = True
        self.version = "3"
        self.restart()

    def restart(self) -> None:
        self.metrics = Metrics("bank", lambda: Load(0, 0), 1, version="3")

    def answer(self, seconds: float, times: int = 1) -> None:
        for _ in range(times):
            self.metrics.first_token.observe(seconds / 2)
            self.metrics.latency.observe(seconds)

    def get(self, path: str) -> tuple[int, bytes]:
        if not self.up:
            return 502, b""
        if path == "/metrics":
            return 200, self.metrics.text()
        if path == "/v1/version":
            return 200, b'{"model_version": "%s"}' % self.version.encode()
        return (200 if self.ready else 503), b"{}"


@contextmanager
def running(server: Server) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = server.get(self.path)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=http.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{http.server_port}"
    finally:
        http.shutdown()
        thread.join()
        http.server_close()


@pytest.fixture
def server() -> Iterator[tuple[Server, Arm]]:
    made = Server()
    with running(made) as url:
        yield made, Arm(url)


def test_requests_failures_and_slow_ones_are_counted(server: tuple[Server, Arm]) -> None:
    here, arm = server
    here.answer(0.04, 90)
    here.answer(0.7, 10)
    for status in (500, 503, 429, 404, 400):
        here.metrics.failed(status)
    arm.look()
    assert arm.ready
    assert arm.version == "3"
    assert arm.seen.failures == Counts(3, 103)  # what a client did wrong is no failure
    assert arm.seen.slower(E2E, 0.05) == Counts(10, 100)
    assert arm.seen.quantile_bound(E2E, 0.5) == 0.05
    assert arm.seen.quantile_bound(E2E, 0.95) == 1.0
    arm.seen.lost = 2
    assert arm.seen.failures == Counts(5, 105)


def test_only_what_came_since_counts(server: tuple[Server, Arm]) -> None:
    here, arm = server
    here.answer(0.04, 90)
    arm.look()
    arm.forget()
    here.answer(0.04, 5)
    arm.look()
    assert arm.seen.requests == 5


def test_a_restart_is_noticed_and_loses_no_count(server: tuple[Server, Arm]) -> None:
    here, arm = server
    here.answer(0.04, 9)
    arm.look()
    here.up = False
    arm.look()
    assert not arm.ready
    assert arm.seen.requests == 9
    here.up = True
    here.restart()
    here.answer(0.04, 2)
    arm.look()
    assert (arm.seen.requests, arm.restarts, arm.ready) == (11, 1, True)
    here.ready = False
    arm.look()
    assert not arm.ready


def test_a_server_that_is_nowhere_is_not_ready() -> None:
    arm = Arm("http://127.0.0.1:9")
    arm.look()
    assert not arm.ready
    assert not arm.follows()
    elsewhere = Arm("http://no.such.host.invalid")
    elsewhere.look()
    assert not elsewhere.ready


def test_counts_of_versions_are_added() -> None:
    text = (
        f'# TYPE {E2E} histogram\n{E2E}_bucket{{model_version="1",le="0.5"}} 3\n'
        f'{E2E}_bucket{{model_version="2",le="0.5"}} 4\n'
        f'{E2E}_count{{model_version="1"}} 3\n{E2E}_count{{model_version="2"}} 5\n'
    )
    found = read_counts(text)
    assert found[f"{E2E}_bucket", "0.5"] == 7
    assert found[f"{E2E}_count", ""] == 8


def test_the_criteria_follow_from_what_the_stable_version_has_shown(
    server: tuple[Server, Arm],
) -> None:
    here, arm = server
    here.answer(0.04, 90)
    here.answer(0.7, 10)
    arm.look()
    settings = default_config({}).canary
    criteria, alpha = traffic_criteria(settings, arm.seen, 1)
    names = [criterion.name for criterion in criteria]
    assert names == ["errors", f"{E2E}>0.05", f"{E2E}>1", "time_to_first_token_seconds>0.025",
                     "time_to_first_token_seconds>0.5"]  # fmt: skip
    assert alpha == settings.alpha / 6
    assert all(criterion.needed > 100 for criterion in criteria)
    good = criteria[1].look(arm.seen, arm.seen)
    assert (good.state, good.value) == ("open", 0.0)
