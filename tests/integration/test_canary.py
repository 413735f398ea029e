"""Candidates that are better, worse, slower and crashing, beside a stable server, behind the proxy
of deploy/proxy: a real HAProxy, real servers, and clients that ask all the time."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from pipeline.config.defaults import default_config
from pipeline.core.errors import GateFailed
from pipeline.core.paths import ROOT
from pipeline.stages import canary
from tests.haproxy import Proxy, free_port, haproxy, needs_haproxy, wait_for
from tests.integration.canary_server import MODEL, RIGHT
from tests.unit.model_folders import make_model_folder

pytestmark = needs_haproxy
ASKED = {
    "model": MODEL, "max_tokens": 8,
    "messages": [{"role": "user", "content": "What does it cost to wire?"}],
}  # fmt: skip


@contextmanager
def server(model: Path, port: int, kind: str, log: Path) -> Iterator[str]:
    """A server of a kind, once it is ready; its address."""
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.canary_server", model, str(port), kind],
            cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=stream, stderr=stream,
        )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(f"{url}/v1/health/ready", process, log)
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


class Clients:
    """Users who ask the proxy all the time. lost: requests without an answer."""

    def __init__(self, url: str) -> None:
        self._url, self._ended = url, False
        self.answers: Counter[str] = Counter()
        self.lost: list[str] = []
        self._threads = [threading.Thread(target=self._ask) for _ in range(4)]

    def _ask(self) -> None:
        with httpx.Client(timeout=30) as client:
            while not self._ended:
                try:
                    answer = client.post(f"{self._url}/v1/chat/completions", json=ASKED)
                    answer.raise_for_status()
                    self.answers[answer.json()["choices"][0]["message"]["content"]] += 1
                except httpx.HTTPError as error:
                    self.lost.append(repr(error))
                time.sleep(0.005)

    def __enter__(self) -> "Clients":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        for thread in self._threads:
            thread.join()


class Setup:
    """The stable server behind the proxy, and room for a candidate."""

    def __init__(
        self, folder: Path, model: Path, stable: str, candidate: int, proxy: Proxy
    ) -> None:
        self.model, self.stable, self.proxy, self._candidate = model, stable, proxy, candidate
        questions = [{"messages": [{"role": "user", "content": f"What does it cost, {n}?"},
                                   {"role": "assistant", "content": RIGHT}]}
                     for n in range(60)]  # fmt: skip
        self.questions = folder / "questions.jsonl"
        self.questions.write_text("".join(json.dumps(each) + "\n" for each in questions))

    def run(self, kind: str, out: Path, **settings: Any) -> tuple[dict[str, Any], Clients]:
        """Try a candidate under load; the report and the clients."""
        given = {
            "artifacts": str(out), "canary.stable": self.stable,
            "canary.candidate": f"http://127.0.0.1:{self._candidate}",
            "canary.haproxy.socket": str(self.proxy.socket), "canary.share": 0.4,
            "canary.error_margin": 0.15, "canary.slow_margin": 0.3, "canary.baseline": 30,
            "canary.every": 0.2, "canary.down_seconds": 1, "canary.seconds": 60,
            "canary.questions": str(self.questions), "evaluate.max_new_tokens": 8,
            **{f"canary.{name}": value for name, value in settings.items()},
        }  # fmt: skip
        out.mkdir()
        with (
            server(self.model, self._candidate, kind, out / "candidate.log"),
            Clients(self.proxy.url) as clients,
            suppress(GateFailed),
        ):
            canary.run(default_config(given))
        (folder,) = (out / "canary").iterdir()
        assert (folder / "report.html").stat().st_size > 2000
        return json.loads((folder / "report.json").read_text()), clients


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    folder = tmp_path_factory.mktemp("canary")
    model = make_model_folder(folder / "model", "demo")
    stable, candidate = free_port(), free_port()
    with (
        server(model, stable, "stable", folder / "stable.log") as url,
        haproxy(folder, stable, candidate) as proxy,
    ):
        yield Setup(folder, model, url, candidate, proxy)


def test_a_better_candidate_is_promoted(setup: Setup, tmp_path: Path) -> None:
    report, clients = setup.run("better", tmp_path / "out")
    assert report["decision"] == "promoted", report["why"]
    assert all(finding["state"] == "fine" for finding in report["findings"])
    errors = next(f for f in report["findings"] if f["name"] == "errors")
    assert 0 < errors["count"] <= report["needed_requests"] + 100  # what one look may bring
    assert not clients.lost


def test_a_worse_candidate_is_rolled_back_before_a_user_is_sent_to_it(
    setup: Setup, tmp_path: Path
) -> None:
    report, clients = setup.run("worse", tmp_path / "out")
    assert report["decision"] == "rolled back"
    assert "exact match" in report["why"]
    assert not report["looks"]
    assert set(clients.answers) == {RIGHT}
    assert not clients.lost


def test_a_slower_candidate_is_rolled_back(setup: Setup, tmp_path: Path) -> None:
    report, clients = setup.run("slower", tmp_path / "out")
    assert report["decision"] == "rolled back"
    assert "wait longer than" in report["why"]
    assert "undecided" not in report["why"]
    assert not clients.lost


def test_a_candidate_that_crashes_is_rolled_back(setup: Setup, tmp_path: Path) -> None:
    few = tmp_path / "few.jsonl"
    few.write_text("".join(setup.questions.read_text().splitlines(keepends=True)[:10]))
    report, clients = setup.run("crashing", tmp_path / "out", questions=str(few))
    assert report["decision"] == "rolled back"
    assert "not ready" in report["why"] or "failed requests" in report["why"]
    # The proxy cannot send again what the candidate had begun with.
    assert len(clients.lost) < 10
