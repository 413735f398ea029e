"""A canary's course and its decisions, with servers whose counts move while it sleeps."""

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.config.defaults import default_config
from pipeline.core.errors import ConfigError, DataError, GateFailed, PipelineError
from pipeline.deployment.canary import run
from pipeline.stages import canary
from tests.unit.deployment.canary.servers import Server, running

RIGHT = "It costs 5 dollars"


class Case:
    """A stable server and a candidate. step: what happens between two looks."""

    def __init__(self, folder: Path, urls: tuple[str, str], stable: Server, tried: Server) -> None:
        self._folder, self._urls, self.stable, self.candidate = folder, urls, stable, tried
        self.step: Callable[[], None] = self.traffic
        self.seconds = 0.0
        self.stable.answer(0.04, 300)

    def traffic(self, seconds: float = 0.04, failing: int = 0) -> None:
        """What both get in an interval: 60 requests and 40."""
        self.stable.answer(0.04, 60)
        self.candidate.answer(seconds, 40 - failing)
        for _ in range(failing):
            self.candidate.metrics.failed(500)

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds
        self.step()

    def run(self, **settings: Any) -> dict[str, Any]:
        """The report."""
        given = {
            "artifacts": str(self._folder), "canary.stable": self._urls[0],
            "canary.candidate": self._urls[1], "canary.share": 0.4, "canary.baseline": 200,
            "canary.error_margin": 0.1, "canary.slow_margin": 0.2,
            **{f"canary.{name}": value for name, value in settings.items()},
        }  # fmt: skip
        with suppress(GateFailed):
            canary.run(default_config(given))
        (folder,) = (self._folder / "canary").iterdir()
        page = (folder / "report.html").read_text()
        assert "<h2>Sample size" in page or "needed" in page
        found: dict[str, Any] = json.loads((folder / "report.json").read_text())
        assert found["decision"].capitalize() in page
        return found

    def questions(self, count: int = 80) -> str:
        turns = [
            [{"role": "user", "content": f"What does {n} cost?"},
             {"role": "assistant", "content": RIGHT}]
            for n in range(count)
        ]  # fmt: skip
        file = self._folder / "questions.jsonl"
        file.write_text("".join(json.dumps({"messages": each}) + "\n" for each in turns))
        return str(file)


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Case]:
    stable, candidate = Server(lambda _: RIGHT), Server(lambda _: RIGHT)
    with running(stable) as one, running(candidate) as other:
        made = Case(tmp_path, (one, other), stable, candidate)
        monkeypatch.setattr(run.time, "sleep", made.sleep)
        monkeypatch.setattr(run.time, "monotonic", lambda: made.seconds)
        yield made


def test_one_that_is_as_good_is_promoted_within_the_sample_size(case: Case) -> None:
    report = case.run(questions=case.questions())
    assert report["decision"] == "promoted", report["why"]
    assert {finding["state"] for finding in report["findings"]} == {"fine"}
    assert len(report["looks"]) > 1
    count = next(f["count"] for f in report["findings"] if f["name"] == "errors")
    assert count <= report["needed_requests"] + 40  # of one interval
    assert any("80 questions" in line for line in report["plan"])


def test_one_that_fails_is_rolled_back_at_once(case: Case) -> None:
    case.step = lambda: case.traffic(failing=30)
    report = case.run()
    assert report["decision"] == "rolled back"
    assert report["why"].startswith("failed requests: 75.0% beside 0.0%")
    assert len(report["looks"]) == 1


def test_one_that_is_slower_is_rolled_back(case: Case) -> None:
    case.step = lambda: case.traffic(seconds=0.4)
    report = case.run()
    assert report["decision"] == "rolled back"
    assert "wait longer than 0.05 s for the answer: 100.0% beside 0.0%" in report["why"]


def test_one_that_answers_worse_gets_no_request(case: Case) -> None:
    case.candidate.text = lambda question: RIGHT if "1" in question else "No"
    report = case.run(questions=case.questions())
    assert report["decision"] == "rolled back"
    assert "exact match" in report["why"]
    assert not report["looks"]
    assert len(report["questions"]) < 80, "it did not have to ask all of them"


def test_answers_that_fail_are_wrong(case: Case) -> None:
    case.candidate.text = lambda question: None
    report = case.run(questions=case.questions())
    assert report["decision"] == "rolled back"
    assert report["questions"][0]["candidate"] == "status 500"


def test_a_budget_that_is_spent_decides_nothing(case: Case) -> None:
    report = case.run(requests=30)
    assert report["decision"] == "rolled back"
    assert report["why"].startswith("undecided after 40 requests, which is the budget: ")
    assert any("may end undecided" in line for line in report["plan"])


def test_the_time_is_a_budget_too(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    case.step = lambda: None  # no user asks anything
    report = case.run(seconds=100)
    assert "undecided after canary.seconds=100" in report["why"]
    said = capsys.readouterr().err
    assert "0 of at most" in said
    assert "no request has arrived for 60 s" in said


def test_a_crash_is_noticed_without_statistics(case: Case) -> None:
    def crash() -> None:
        case.traffic()
        case.candidate.up = False

    case.step = crash
    assert "is not ready, for more than 30 s" in case.run()["why"]


def test_a_restart_is_noticed_too(case: Case) -> None:
    looks = []

    def restart() -> None:
        looks.append(1)
        case.traffic()
        if len(looks) == 2:
            case.candidate.restart()

    case.step = restart
    assert "crashed: it began to count from zero" in case.run()["why"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_one_that_is_stopped_gives_the_traffic_back(
    number: signal.Signals, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Containers, systemd and `timeout` send SIGTERM."""
    shares: list[float] = []
    split = SimpleNamespace(set_share=shares.append, lost=lambda: (0, 0))
    monkeypatch.setattr(run, "splitter", lambda settings: split)
    case.step = lambda: signal.raise_signal(number)
    with pytest.raises(KeyboardInterrupt):
        case.run()
    assert shares == [0.0, 0.4, 0.0]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_stable_version_that_changes_meanwhile_ends_it(case: Case) -> None:
    def change() -> None:
        case.traffic()
        case.stable.version = "4"

    case.step = change
    assert "changed to version 4 meanwhile" in case.run()["why"]


def test_it_waits_for_enough_requests_to_plan_with(case: Case) -> None:
    case.stable.restart()
    assert case.run()["decision"] == "promoted"


def test_a_stable_server_that_nobody_asks(case: Case) -> None:
    case.stable.restart()
    case.step = lambda: None
    assert "0 requests within canary.seconds=50, and 200 are needed" in case.run(seconds=50)["why"]


def test_the_shadow_shows_what_was_recorded_beside_the_candidates_answer(
    case: Case, tmp_path: Path
) -> None:
    folder = tmp_path / "recorded"
    folder.mkdir()
    turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good day"}]
    for name in ("1.jsonl", "2.jsonl.part"):
        (folder / name).write_text(json.dumps({"messages": turns}) + "\n")
    report = case.run(recordings=str(folder))
    assert report["decision"] == "promoted", "other words decide nothing"
    shown = {"question": "Hello", "stable": "Good day", "candidate": RIGHT, "alike": False}
    assert len(report["shadow"]) == 2
    assert shown.items() <= report["shadow"][0].items()


def test_a_candidate_that_fails_in_the_shadow_gets_no_request(case: Case, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good day"}]
    (tmp_path / "1.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    case.candidate.text = lambda question: None
    report = case.run(recordings=str(tmp_path))
    assert report["why"] == "the candidate fails in the shadow: status 500"
    assert not report["looks"]


def test_what_cannot_begin_says_why(case: Case, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"give register\.version"):
        canary.run(default_config({"artifacts": str(tmp_path)}))
    (tmp_path / "bad.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match=r"bad.jsonl:1: .*each line must be JSON"):
        case.run(questions=str(tmp_path / "bad.jsonl"))
    case.stable.ready = False
    with pytest.raises(PipelineError, match=r"the stable server at .* is not ready"):
        case.run()
