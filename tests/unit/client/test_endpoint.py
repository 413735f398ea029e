import re
import threading
import time
from collections.abc import Callable, Iterable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from pipeline.client import endpoint as client
from pipeline.client.budget import NOTHING
from pipeline.client.endpoint import Answer, BudgetSpent, Endpoint, Request
from pipeline.client.ledger import Ledger
from pipeline.core.errors import ArtifactError, Busy, ConfigError, MissingRuntime, PipelineError
from pipeline.core.secrets import mask
from tests.openai_server import OpenAIServer, Reply, endpoint_settings, error

Behaviour = Callable[[dict[str, Any]], str | Reply]


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "FIRST_PAUSE", 0.001)


def question(text: object, **fields: Any) -> Request:
    return Request([{"role": "user", "content": str(text)}], about=text, **fields)


def asked(body: dict[str, Any]) -> str:
    return str(body["messages"][-1]["content"])


def until_the_end(
    endpoint: Endpoint, requests: Iterable[Request]
) -> tuple[list[Answer], PipelineError | None]:
    """The answers, and the error that ended them."""
    answers: list[Answer] = []
    try:
        for answer in endpoint.ask(requests):
            answers.append(answer)
    except PipelineError as error:
        return answers, error
    return answers, None


def run(
    folder: Path, behaviour: Behaviour, requests: Iterable[Request], **changes: Any
) -> tuple[list[Answer], Endpoint, OpenAIServer]:
    with OpenAIServer(behaviour) as server, Ledger(folder / "answers.jsonl") as ledger:
        url = changes.pop("base_url", server.url)
        endpoint = Endpoint(endpoint_settings(url, **changes), ledger, "test.endpoint")
        return list(endpoint.ask(requests)), endpoint, server


def test_answers_come_in_order_with_many_in_flight(tmp_path: Path) -> None:
    def slow(body: dict[str, Any]) -> str:
        time.sleep(0.05 if asked(body) == "0" else 0.01)
        return f"answer {asked(body)}"

    answers, endpoint, server = run(tmp_path, slow, map(question, range(12)))
    assert [a.text for a in answers] == [f"answer {i}" for i in range(12)]
    assert [a.request.about for a in answers] == list(range(12))
    assert server.most_in_flight == 4
    assert endpoint.model == "tiny" == answers[0].model


def test_a_request_has_what_the_settings_and_the_caller_say(tmp_path: Path) -> None:
    more = {"response_format": {"type": "json_object"}}
    _, _, server = run(tmp_path, lambda _: "x", [question("q", seed=7, more=more)], model="m")
    assert server.bodies == [
        {
            "model": "m", "messages": [{"role": "user", "content": "q"}], "temperature": 0.0,
            "seed": 7, "max_tokens": 20, **more,
        }
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (Reply(raw=b"<html>hello</html>"), "not a chat completion: <html>hello</html>"),
        (Reply(raw=b'{"choices": []}'), "not a chat completion"),
        (Reply(raw=b'{"choices": [{"message": {"content": 5}}]}'), "not a chat completion"),
        (Reply(raw=b"[" * 100_000), "not a chat completion"),
        (Reply(raw=b""), "not a chat completion"),
        (Reply(close=True), "no answer (RemoteProtocolError"),
        (Reply(hang=3), "no answer within 0.2 s"),
        (error(429, "slow down"), "status 429: slow down"),
        (error(500, "oh no"), "status 500: oh no"),
        (error(400, "prompt too long"), "status 400: prompt too long"),
        (Reply(302, b"", {"Location": "http://example.org"}), "status 302"),
        ("", "an empty answer"),
        ("<think>hm</think> ", "an empty answer"),
    ],
)
def test_a_request_that_fails_costs_no_other(tmp_path: Path, bad: str | Reply, why: str) -> None:
    def behaviour(body: dict[str, Any]) -> str | Reply:
        return bad if asked(body) == "2" else "good"

    answers, _, _ = run(tmp_path, behaviour, map(question, range(6)), timeout=0.2)
    assert [a.text for a in answers if not a.failure] == ["good"] * 5
    (failed,) = [a for a in answers if a.failure]
    assert failed.request.about == 2
    assert why in str(failed.failure)


def test_what_is_busy_or_broken_for_a_moment_is_asked_again(tmp_path: Path) -> None:
    faults = (error(503, "later", Retry_After="0.01"), Reply(close=True))
    seen: list[str] = []
    lock = threading.Lock()

    def behaviour(body: dict[str, Any]) -> str | Reply:
        with lock:
            seen.append(asked(body))
            times = seen.count(asked(body))
        return "good" if times > len(faults) else faults[times - 1]

    answers, _, _ = run(tmp_path, behaviour, map(question, range(3)))
    assert [a.text for a in answers] == ["good"] * 3


def test_thoughts_are_not_part_of_an_answer(tmp_path: Path) -> None:
    answers, _, _ = run(tmp_path, lambda _: "<think>\nwell\n</think>\n\nyes", [question("q")])
    assert answers[0].text == "yes"


def test_a_newer_model_gets_the_limit_under_its_newer_name(tmp_path: Path) -> None:
    def behaviour(body: dict[str, Any]) -> str | Reply:
        return error(400, "use max_completion_tokens") if "max_tokens" in body else "good"

    answers, _, server = run(tmp_path, behaviour, map(question, range(3)), concurrency=1)
    assert [a.text for a in answers] == ["good"] * 3
    assert len(server.bodies) == 4


@pytest.mark.parametrize("status", [401, 403, 404])
def test_what_no_request_can_mend_ends_the_run_in_one_line(tmp_path: Path, status: int) -> None:
    with pytest.raises(MissingRuntime, match=rf"answers with status {status}: no.*test.endpoint"):
        run(tmp_path, lambda _: error(status, "no"), map(question, range(100)), model="m")


def test_a_server_that_is_gone_ends_the_run(tmp_path: Path) -> None:
    nobody = "http://user:geheim@127.0.0.1:9/v1"
    with pytest.raises(MissingRuntime, match="does not answer") as caught:
        run(tmp_path, lambda _: "x", [question(1)], base_url=nobody)
    with pytest.raises(MissingRuntime, match="failed 8 times in a row") as later:
        run(tmp_path, lambda _: "x", map(question, range(100)), base_url=nobody, model="m")
    assert "geheim" not in f"{caught.value} {later.value}"


def test_a_server_that_dies_leaves_the_answers_that_are_there(tmp_path: Path) -> None:
    def behaviour(body: dict[str, Any]) -> str | Reply:
        return "good" if int(asked(body)) < 10 else error(500, "dead")

    with OpenAIServer(behaviour) as server, Ledger(tmp_path / "l") as ledger:
        endpoint = Endpoint(endpoint_settings(server.url, retries=0), ledger, "test.endpoint")
        answers, stop = until_the_end(endpoint, map(question, range(1000)))
    assert isinstance(stop, MissingRuntime)
    assert "failed 8 times in a row, the last time with: status 500: dead" in str(stop)
    assert [a.text for a in answers if not a.failure] == ["good"] * 10
    assert len(server.bodies) < 40


def test_models_of_a_server(tmp_path: Path) -> None:
    with (
        OpenAIServer(lambda _: "x", models=("a", "b")) as server,
        Ledger(tmp_path / "l") as ledger,
        pytest.raises(MissingRuntime, match=r"lists 2 models \(a, b\): set test.endpoint.model"),
    ):
        list(Endpoint(endpoint_settings(server.url), ledger, "test.endpoint").ask([]))


def test_an_interrupted_run_asks_only_for_what_is_missing(tmp_path: Path) -> None:
    with OpenAIServer(lambda body: f"answer {asked(body)}") as server:
        settings = endpoint_settings(server.url)
        with Ledger(tmp_path / "answers.jsonl") as ledger:
            answers = Endpoint(settings, ledger, "test.endpoint").ask(map(question, range(40)))
            first = [next(answers) for _ in range(5)]
            answers.close()
        file = tmp_path / "answers.jsonl"
        file.write_bytes(file.read_bytes() + b'{"sent": 9')  # a line that a kill cut off
        before = len(server.bodies)
        with Ledger(file) as ledger:
            endpoint = Endpoint(settings, ledger, "test.endpoint")
            second = list(endpoint.ask(map(question, range(40))))
    assert [a.text for a in second] == [f"answer {i}" for i in range(40)]
    assert [a.text for a in first] == [a.text for a in second[:5]]
    assert all(a.cached for a in second[:5])
    assert len(server.bodies) - before <= 35


PRICE = {"prompt": 1_000.0, "completion": 10_000.0}  # per million: 0.1 and 1 cent a token


def test_a_budget_is_kept_to_the_cent(tmp_path: Path) -> None:
    """An answer costs 2 tokens of a prompt and 5 of an answer: 0.052; at most it may cost 0.48."""
    with OpenAIServer(lambda _: "one two three four five") as server:
        settings = endpoint_settings(
            server.url, price=PRICE, budget={"tokens": None, "cost": 1.5}, concurrency=16
        )
        with Ledger(tmp_path / "answers.jsonl") as ledger:
            endpoint = Endpoint(settings, ledger, "test.endpoint")
            asked = (question(f"question {i}") for i in range(1000))
            answers, stop = until_the_end(endpoint, asked)
        assert isinstance(stop, BudgetSpent)
        assert re.search(r"test.endpoint.budget: 1\.\d\d of 1\.50 are used", str(stop))
        cost = sum(a.use.cost for a in answers)
        assert endpoint.budget.used.cost == cost == Decimal("0.052") * len(answers)
        assert Decimal("0.95") < cost <= Decimal("1.5")
        assert len(server.bodies) == len(answers)
        with Ledger(tmp_path / "answers.jsonl") as ledger:
            assert ledger.used.cost == cost  # and another run counts it
            with pytest.raises(BudgetSpent):
                list(Endpoint(settings, ledger, "test.endpoint").ask([question("new")]))


@pytest.mark.parametrize(
    ("reply", "counts"),
    [
        (Reply(raw=b'{"choices": [{"message": {"content": "x"}}]}'), True),
        (Reply(raw=b"nonsense"), True),
        (Reply(close=True), True),
        (error(429, "no"), False),
    ],
)
def test_what_nobody_knows_the_price_of_counts_in_full(
    tmp_path: Path, reply: Reply, counts: bool
) -> None:
    requests = [question("q")]
    _, endpoint, _ = run(tmp_path, lambda _: reply, requests, price=PRICE, retries=0)
    most = endpoint.budget.most(requests[0].messages, 20)
    assert endpoint.budget.used == (most if counts else NOTHING)
    with Ledger(tmp_path / "answers.jsonl") as ledger:
        assert ledger.used == endpoint.budget.used


def test_a_token_budget_is_kept(tmp_path: Path) -> None:
    tokens = {"tokens": 400, "cost": None}
    with pytest.raises(BudgetSpent, match="of 400 tokens"):
        run(tmp_path, lambda _: "one", map(question, range(10_000)), budget=tokens)
    with Ledger(tmp_path / "answers.jsonl") as ledger:
        assert 100 - 20 < ledger.used.tokens <= 400


def test_a_key_comes_from_the_environment_and_is_masked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "  a-very-plain-key\n")
    said = error(400, "the key a-very-plain-key is not enough")
    answers, _, server = run(tmp_path, lambda _: said, [question("q")], key_variable="MY_KEY")
    assert server.keys == ["Bearer a-very-plain-key"]
    assert "a-very-plain-key" not in str(answers[0].failure)
    assert mask("it is a-very-plain-key") == "it is ***"
    assert b"a-very-plain-key" not in (tmp_path / "answers.jsonl").read_bytes()
    monkeypatch.delenv("MY_KEY")
    with pytest.raises(ConfigError, match=r"\.key_variable=MY_KEY: this environment"):
        run(tmp_path, lambda _: "x", [], key_variable="MY_KEY")
    monkeypatch.setenv("MY_KEY", "two\nlines")
    with pytest.raises(ConfigError, match="MY_KEY holds a line break"):
        run(tmp_path, lambda _: "x", [], key_variable="MY_KEY")


def test_one_run_at_a_time_writes_a_ledger(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l"), pytest.raises(Busy, match="another run writes"):
        Ledger(tmp_path / "l")


def test_a_broken_ledger_is_refused_by_its_line(tmp_path: Path) -> None:
    (tmp_path / "l").write_text('{"sent": 0, "key": "k", "tokens": 1, "cost": "x"}\n')
    with pytest.raises(ArtifactError, match=r"l:1 is not a line of this program"):
        Ledger(tmp_path / "l")


def test_a_limit_on_money_needs_prices() -> None:
    with pytest.raises(ValueError, match="no effect without prices"):
        endpoint_settings("http://localhost/v1", budget={"tokens": None, "cost": 1})
