"""synthesize: rows from documents through an OpenAI server; nothing is asked or paid twice."""

import json
import re
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from pipeline.__main__ import main
from pipeline.client.endpoint import BudgetSpent
from pipeline.config.schema import Config, load
from pipeline.core.errors import ConfigError, DataError, MissingRuntime
from pipeline.data.reading import read_file
from pipeline.data.rows import Conversation
from pipeline.orchestration.compose import compose
from pipeline.stages import synthesize
from tests.openai_server import OpenAIServer, Reply, error

FEES = {"wire": 25, "card": 12, "check": 7, "loan": 99, "safe": 60, "form": 3}


@pytest.fixture(scope="module")
def tree() -> dict[str, Any]:
    return compose([])


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    folder = tmp_path / "documents"
    folder.mkdir()
    for name, fee in FEES.items():
        text = f"A {name} costs {fee} dollars in every branch. "
        (folder / f"{name}.md").write_text(f"# Fees\n\n## The {name}\n\n{text}\n")
    return folder


def configure(tree: dict[str, Any], documents: Path, url: str, **changes: Any) -> Config:
    endpoint = {**tree["synthesize"]["endpoint"], "base_url": url, "retries": 0}
    endpoint |= changes.pop("endpoint", {})
    settings = {**tree["synthesize"], "folder": documents, "documents": ["*.md"],
                "to": documents.parent / "rows", **changes, "endpoint": endpoint}  # fmt: skip
    return load({**tree, "synthesize": settings})


def good(body: dict[str, Any]) -> str:
    """What a capable model says: a grounded pair, an invented figure, and one about nothing."""
    thing, fee = re.findall(r"A (\w+) costs (\d+) dollars", body["messages"][-1]["content"])[0]
    pairs = [
        (f"What does a {thing} cost?", f"A {thing} costs {fee} dollars."),
        (f"What does a {thing} cost abroad?", f"A {thing} costs {int(fee) + 1000} dollars."),
        (f"Who sells a {thing}?", "Travelling merchants from Genoa."),
    ]
    return json.dumps({"pairs": [{"question": q, "answer": a} for q, a in pairs]})


def made(config: Config) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    folder = config.synthesize.to
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    return rows, json.loads((folder / "manifest.json").read_text())


def test_rows_and_how_they_were_made(tree: dict[str, Any], documents: Path) -> None:
    with OpenAIServer(good) as server:
        config = configure(tree, documents, server.url)
        synthesize.run(config)
        rows, manifest = made(config)
        first = (config.synthesize.to / "rows.jsonl").read_bytes()
        synthesize.run(config)  # which asks nothing
        assert (config.synthesize.to / "rows.jsonl").read_bytes() == first
    assert len(server.bodies) == len(FEES)
    assert server.most_in_flight <= 16
    assert all(body["seed"] == config.seed for body in server.bodies)
    assert all(body["response_format"]["type"] == "json_schema" for body in server.bodies)
    sources = [(row["source"], row["metadata"]["line"]) for row in rows]
    assert sources == [(f"{documents / name}.md:5", 5) for name in sorted(FEES)]
    (row,) = (row for row in rows if "wire" in row["source"])
    assert row["messages"] == [
        {"role": "user", "content": "What does a wire cost?"},
        {"role": "assistant", "content": "A wire costs 25 dollars."},
    ]
    how = row["metadata"]
    assert (how["model"], how["seed"], how["support"]) == ("tiny", config.seed, 1.0)
    assert how["headings"] == ["Fees", "The wire"]
    assert how["prompt_sha256"] == manifest["prompt_sha256"]
    assert "Use nothing but what the text says" in manifest["prompt"]
    assert manifest["complete"]
    assert manifest["models"] == ["tiny"]
    assert manifest["counts"] == {
        "chunks": 6, "answered": 6, "cut_off": 0, "without_a_pair": 0, "pairs": 18, "rows": 6,
        "unused": {"number is not in the text": 6, "words are not in the text": 6},
    }  # fmt: skip
    unused = (config.synthesize.to / "unused/pairs.jsonl").read_text().splitlines()
    assert len(unused) == 12
    assert json.loads(unused[0])["detail"] == "1012"
    # What data=files reads.
    read = list(read_file(config.synthesize.to / "rows.jsonl", "rows.jsonl"))
    assert all(isinstance(row, Conversation) for row in read)
    assert len(read) == 6


def test_a_budget_holds_to_the_cent_and_a_higher_one_goes_on(
    tree: dict[str, Any], documents: Path
) -> None:
    paid: list[Decimal] = []

    def answer(body: dict[str, Any]) -> str:
        text = good(body)
        prompt = sum(len(m["content"].split()) for m in body["messages"])
        paid.append(Decimal(prompt * 300 + len(text.split()) * 900) / 10**6)
        return text

    price = {"prompt": 300, "completion": 900}
    with OpenAIServer(answer) as server:
        limits = {"price": price, "budget": {"tokens": None, "cost": 0.7}, "max_tokens": 200}
        config = configure(tree, documents, server.url, endpoint=limits)
        with pytest.raises(BudgetSpent, match=r"synthesize\.endpoint\.budget: .* raise the budget"):
            synthesize.run(config)
        rows, manifest = made(config)
        asked = len(server.bodies)
        assert 0 < asked < len(FEES)
        assert len(rows) == asked
        assert not manifest["complete"]
        assert Decimal(manifest["used"]["cost"]) == sum(paid) <= Decimal("0.7")
        more = {**limits, "budget": {"tokens": None, "cost": 50}}
        config = configure(tree, documents, server.url, endpoint=more)
        synthesize.run(config)
    rows, manifest = made(config)
    assert len(server.bodies) == len(rows) == len(FEES)
    assert manifest["complete"]
    assert Decimal(manifest["used"]["cost"]) == sum(paid)


def test_chunks_without_an_answer_are_asked_again(tree: dict[str, Any], documents: Path) -> None:
    broken = ["wire", "loan"]

    def answer(body: dict[str, Any]) -> str | Reply:
        prompt = body["messages"][-1]["content"]
        if any(f"A {name} costs" in prompt for name in broken):
            return error(500, "no")
        return good(body) if "A safe costs" not in prompt else "I am sorry."

    with OpenAIServer(answer) as server:
        config = configure(tree, documents, server.url, endpoint={"concurrency": 2})
        synthesize.run(config)
        rows, manifest = made(config)
        assert (len(rows), manifest["complete"]) == (3, False)
        failures = (config.synthesize.to / "unused/failures.jsonl").read_text()
        assert "wire.md:5" in failures
        assert '"reason": "no pair", "answer": "I am sorry."' in failures
        broken.clear()
        asked = len(server.bodies)
        synthesize.run(config)
    assert len(server.bodies) == asked + 2
    assert len(made(config)[0]) == 5


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda _: "Once upon a time.", "no pair could be kept of 6 chunks"),
        (lambda _: error(401, "no key"), "answers with status 401"),
    ],
)
def test_a_server_that_is_of_no_use(
    tree: dict[str, Any], documents: Path, answer: Callable[[Any], Any], said: str
) -> None:
    with OpenAIServer(answer) as server:
        config = configure(tree, documents, server.url)
        with pytest.raises((DataError, MissingRuntime), match=said) as caught:
            synthesize.run(config)
    assert "\n" not in str(caught.value)


def test_a_prompt_of_the_users_own_and_no_schema(tree: dict[str, Any], documents: Path) -> None:
    own = documents.parent / "prompt.txt"
    own.write_text("Ask {questions} about {title} ({section}): {text} {other}")
    with OpenAIServer(good) as server:
        config = configure(tree, documents, server.url, prompt=own, guided=False, questions=2)
        synthesize.run(config)
    (asked,) = (b for b in server.bodies if "A wire costs" in b["messages"][0]["content"])
    text = asked["messages"][0]["content"]
    assert text.startswith("Ask 2 about Fees (Fees > The wire): A wire costs 25")
    assert text.endswith(" {other}")
    assert "response_format" not in asked
    own.write_text("Ask about it.")
    with pytest.raises(ConfigError, match=r"has no \{text\}"):
        synthesize.run(config)
    own.unlink()
    with pytest.raises(ConfigError, match=r"synthesize\.prompt=.* cannot be read"):
        synthesize.run(config)


def test_folders_that_hold_something_else_are_refused(
    tree: dict[str, Any], documents: Path
) -> None:
    config = configure(tree, documents, "http://127.0.0.1:9/v1", to=documents)
    with pytest.raises(ConfigError, match=r"holds other files \(card.md, .*: name a new folder"):
        synthesize.run(config)
    other = documents.parent / "other"
    other.mkdir()
    (other / "rows.jsonl").write_text("{}\n")
    config = configure(tree, documents, "http://127.0.0.1:9/v1", to=other)
    with pytest.raises(ConfigError, match="did not write"):
        synthesize.run(config)
    assert (other / "rows.jsonl").read_text() == "{}\n"


def test_the_command(
    documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    given = ["stage=synthesize", "synthesize.folder=documents", "synthesize.documents=[*.md]",
             "synthesize.endpoint.retries=0"]  # fmt: skip
    assert main([*given, "synthesize.endpoint.base_url=http://127.0.0.1:9/v1"]) == 7
    assert "set synthesize.endpoint.base_url" in capsys.readouterr().err
    with OpenAIServer(good) as server:
        assert main([*given, f"synthesize.endpoint.base_url={server.url}"]) == 0
    said = capsys.readouterr().err
    assert "6 of 6 chunks are answered, with 18 pairs: 6 are rows in synthesized/rows.jsonl" in said
    assert "6 not used: number is not in the text" in said
    assert "data=files data.folder=synthesized 'data.train=[rows.jsonl]'" in said
