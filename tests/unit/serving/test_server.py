"""What a stop does to the server, and what it takes of a model's folder, without a process."""

import asyncio
import re
import resource
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.core.errors import DataError
from pipeline.serving import server
from pipeline.serving.middleware.request_log import InFlight
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
    assert state.readiness.reason_not_ready() == "shutting down"
    assert state.in_flight.draining
    assert not ends(running)
    state.in_flight.count = 0
    assert ends(running)


def test_with_a_delay_it_takes_what_the_balancer_still_sends(clock: Clock) -> None:
    running = stopped(3)
    state = running.config.app.state  # type: ignore[union-attr]
    assert state.readiness.reason_not_ready()
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


def test_the_models_own_defaults_are_used(tmp_path: Path) -> None:
    assert server._sampling_defaults(tmp_path) == {}
    own = '{"temperature": 0.6, "top_k": 20, "top_p": 1, "min_p": null, "eos_token_id": [1]}'
    (tmp_path / "generation_config.json").write_text(own)
    assert server._sampling_defaults(tmp_path) == {"temperature": 0.6, "top_k": 20, "top_p": 1}


@pytest.mark.parametrize(
    ("own", "words"),
    [
        ("{bad", "cannot be read"),
        ("[]", "does not hold a JSON object"),
        ('{"temperature": "hot"}', "temperature='hot': Input should be a valid number"),
        ('{"temperature": -1}', "temperature=-1: Input should be greater than or equal to 0"),
        ('{"top_k": 1e400}', "top_k=inf: "),
        ('{"top_k": 2.5}', "top_k=2.5: "),
        ('{"repetition_penalty": NaN}', "repetition_penalty=nan: "),
    ],
)
def test_invalid_defaults_are_refused_at_the_start(tmp_path: Path, own: str, words: str) -> None:
    (tmp_path / "generation_config.json").write_text(own)
    with pytest.raises(DataError, match=rf"generation_config\.json.*{re.escape(words)}"):
        server._sampling_defaults(tmp_path)


@pytest.mark.parametrize(
    ("soft", "hard", "raised", "warns"),
    [
        (1024, 2**20, 3328, False),
        (1024, resource.RLIM_INFINITY, 3328, False),
        (1024, 2048, 2048, False),
        (1024, 1024, 1024, True),
        (4096, 4096, None, False),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, None, False),
    ],
)
def test_connections_are_not_bounded_by_open_files_where_that_can_be_helped(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    soft: int,
    hard: int,
    raised: int | None,
    warns: bool,
) -> None:
    limits: list[tuple[int, int]] = []
    monkeypatch.setattr(server.resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(server.resource, "setrlimit", lambda _, given: limits.append(given))
    server._allow_files(1024)
    assert limits == ([] if raised is None else [(raised, hard)])
    assert ("serve.max_connections=1024 needs more open files" in caplog.text) == warns


def test_only_failures_after_the_stop_count(clock: Clock) -> None:
    running = stopped(0)
    assert running.finished
    in_flight = running.config.app.state.in_flight  # type: ignore[union-attr]
    in_flight.failed += 1
    running.handle_exit(signal.SIGTERM, None)
    assert not running.finished
