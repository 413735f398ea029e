"""What servers have counted, as /metrics says it."""

from collections.abc import Iterator

import pytest

from pipeline.config.defaults import default_config
from pipeline.deployment.canary.counts import Arm, read_counts
from pipeline.deployment.canary.criteria import traffic_criteria
from pipeline.deployment.canary.sequential import Counts
from tests.unit.deployment.canary.servers import Server, running

E2E = "e2e_request_latency_seconds"


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
