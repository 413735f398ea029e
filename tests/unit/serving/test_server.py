"""What a stop does to the server, without a process."""

import asyncio
import signal
from types import SimpleNamespace

import pytest

from pipeline.serving import server
from pipeline.serving.calls import InFlight
from pipeline.serving.readiness import Readiness


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(server, "time", clock)
    return clock


def stopped(delay: float) -> server._Server:
    """A server with one answer in progress that has had a SIGTERM."""
    readiness = Readiness(SimpleNamespace(down=lambda: None), None)
    readiness.ready = True
    app = SimpleNamespace(state=SimpleNamespace(readiness=readiness, in_flight=InFlight()))
    app.state.in_flight.count = 1
    config = SimpleNamespace(app=app, date_header=False, encoded_headers=[], callback_notify=None)
    config.limit_max_requests = None
    running = server._Server(config, delay)  # type: ignore[arg-type]
    running.handle_exit(signal.SIGTERM, None)
    return running


def ends(running: server._Server) -> bool:
    return asyncio.run(running.on_tick(1))


def test_a_stop_is_seen_at_once_and_refuses_at_once(clock: Clock) -> None:
    running = stopped(0)
    state = running.config.app.state  # type: ignore[union-attr]
    assert state.readiness.why_not() == "shutting down"
    assert state.in_flight.draining
    assert not ends(running)
    state.in_flight.count = 0
    assert ends(running)


def test_with_a_delay_it_takes_what_the_balancer_still_sends(clock: Clock) -> None:
    running = stopped(3)
    state = running.config.app.state  # type: ignore[union-attr]
    assert state.readiness.why_not()
    state.in_flight.count = 0
    clock.now += 2.9
    assert not ends(running)
    assert not state.in_flight.draining
    clock.now += 0.1
    assert ends(running)
    assert state.in_flight.draining


def test_an_impatient_ctrl_c_ends_it(clock: Clock) -> None:
    running = stopped(3)
    running.handle_exit(signal.SIGINT, None)
    assert running.force_exit
    assert not running.finished
    assert ends(running)


def test_only_answers_that_failed_after_the_stop_were_cut(clock: Clock) -> None:
    running = stopped(0)
    assert running.finished
    in_flight = running.config.app.state.in_flight  # type: ignore[union-attr]
    in_flight.cut += 1
    running.handle_exit(signal.SIGTERM, None)
    assert not running.finished
