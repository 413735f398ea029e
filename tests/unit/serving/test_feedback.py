"""Ratings, corrections and votes, and what training reads of them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.data.reading import Options, read_file
from pipeline.data.rows import Conversation
from pipeline.engines.batching.scheduler import BatchingEngine
from pipeline.models.chat.renderer import Chat
from pipeline.serving.app import create_app
from pipeline.serving.feedback import Feedback
from pipeline.serving.middleware.stack import MiddlewareStack
from tests.unit.model_folders import make_model_folder
from tests.unit.serving.asgi import ask
from tests.unit.serving.fake_models import ListModel, say

HELLO = [{"role": "user", "content": "What does a wire cost?"}]
TALK = [
    {"role": "system", "content": "Be short."}, {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hello!"}, *HELLO,
]  # fmt: skip
CONSENT = {"x-record-consent": "yes"}
RATING = {"model": "bank", "messages": HELLO, "answer": "5 euros."}


class Site:
    def __init__(self, folder: Path, chat: Chat) -> None:
        self.folder, self.feedback = folder, Feedback(folder)
        model = ListModel(say(chat, "Hello."), max_seq_len=96)
        self.engine = BatchingEngine(model, max_input_len=80, max_queue=4)
        stack = MiddlewareStack(feedback=self.feedback)
        self.app = create_app(self.engine, chat, model="bank", slots=4, middleware=stack)

    def post(self, path: str, headers: Any = CONSENT, **body: Any) -> Any:
        return ask(self.app, "POST", path, json=body, headers=headers)

    def rows(self, kind: Any) -> list[Conversation]:
        """What `prepare` reads, with the objective that the rows are for."""
        self.feedback.close()
        files = sorted((self.folder / kind).glob("*.jsonl"))
        found = [row for f in files for row in read_file(f, f.name, Options(kind=kind))]
        assert all(isinstance(row, Conversation) for row in found), found
        return found  # type: ignore[return-value]


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Chat:
    return Chat.load(make_model_folder(tmp_path_factory.mktemp("feedback"), "demo"))


@pytest.fixture
def site(tmp_path: Path, chat: Chat) -> Iterator[Site]:
    site = Site(tmp_path, chat)
    yield site
    site.engine.close()


def test_ratings_are_rows_with_labels(site: Site) -> None:
    for rating in ("good", "bad"):
        answer = site.post("/v1/feedback", **{**RATING, "messages": TALK}, rating=rating)
        assert answer.json() == {"recorded": True}
    good, bad = site.rows("labels")
    assert (good.label, bad.label) == (True, False)
    assert good.messages[-1]["content"] == "5 euros."
    assert good.messages[2]["weight"] == 0
    text = ask(site.app, "GET", "/metrics").text
    line = 'feedback_ratings_total{model="bank",model_name="bank",rating="good"} 1.0'
    assert line in text


def test_a_correction_is_a_pair(site: Site) -> None:
    given = {**RATING, "messages": TALK, "rating": "bad", "correction": "25 euros."}
    assert site.post("/v1/feedback", **given).status_code == 200
    (row,) = site.rows("pairs")
    assert row.messages[-1]["content"] == "25 euros."
    assert row.rejected is not None
    assert row.rejected[-1]["content"] == "5 euros."
    assert row.messages[:-1] == row.rejected[:-1]
    assert len(site.rows("labels")) == 1


@pytest.mark.parametrize(("better", "outcomes"), [
    ("first", {("bank", "base", "won"): 1}),
    ("second", {("base", "bank", "won"): 1}),
    ("tie", {("bank", "base", "tie"): 1, ("base", "bank", "tie"): 1}),
])  # fmt: skip
@pytest.mark.parametrize("headers", [CONSENT, {}])
def test_votes_are_counted_and_kept_with_consent(
    site: Site, monkeypatch: pytest.MonkeyPatch, better: str, outcomes: Any, headers: Any
) -> None:
    from pipeline.serving.openai.models import ServedModels

    monkeypatch.setattr(ServedModels, "find", lambda self, name: None)  # two models are served
    first, second = {"model": "bank", "answer": "A."}, {"model": "base", "answer": "B."}
    body: dict[str, Any] = {"messages": HELLO, "first": first, "second": second, "better": better}
    answer = site.post("/v1/votes", headers, **body)
    kept = bool(headers) and better != "tie"
    assert answer.json() == {"recorded": kept}
    text = ask(site.app, "GET", "/metrics").text
    for (model, other, outcome), count in outcomes.items():
        labels = f'model="{model}",model_name="bank",other="{other}",outcome="{outcome}"'
        assert f"feedback_votes_total{{{labels}}} {count}.0" in text
    rows = site.rows("pairs")
    assert len(rows) == kept
    if kept:
        assert rows[0].messages[-1]["content"] == ("A." if better == "first" else "B.")


@pytest.mark.parametrize(("path", "body", "status", "param"), [
    ("/v1/feedback", RATING, 400, "rating"),
    ("/v1/feedback", {**RATING, "rating": "great"}, 400, "rating"),
    ("/v1/feedback", {**RATING, "correction": "5 euros."}, 400, "correction"),
    ("/v1/feedback", {**RATING, "rating": "bad", "messages": []}, 400, "messages"),
    ("/v1/feedback", {**RATING, "rating": "bad", "messages": TALK[:3]}, 400, "messages"),
    ("/v1/feedback", {**RATING, "rating": "bad", "model": "other"}, 404, "model"),
    ("/v1/feedback", {**RATING, "rating": "bad", "odd": 1}, 400, "odd"),
    ("/v1/votes", {"messages": HELLO, "first": {"model": "bank", "answer": "a"},
                   "second": {"model": "bank", "answer": "b"}, "better": "first"}, 400, "second"),
])  # fmt: skip
def test_bad_feedback_is_refused(
    site: Site, path: str, body: dict[str, Any], status: int, param: str
) -> None:
    response = site.post(path, **body)
    assert response.status_code == status
    assert response.json()["error"]["param"] == param
    assert not [file for kind in ("pairs", "labels") for file in site.rows(kind)]


def test_without_consent_nothing_is_kept(site: Site) -> None:
    response = site.post("/v1/feedback", {}, **RATING, rating="good")
    assert response.status_code == 403
    assert response.json()["error"]["code"] == "consent_required"
    assert site.rows("labels") == []


def test_a_server_without_feedback_has_no_such_route(chat: Chat) -> None:
    model = ListModel(say(chat, "Hello."), max_seq_len=96)
    engine = BatchingEngine(model, max_input_len=80, max_queue=4)
    app = create_app(engine, chat, model="bank", slots=4)
    assert ask(app, "POST", "/v1/feedback", json={**RATING, "rating": "good"}).status_code == 404
    engine.close()
