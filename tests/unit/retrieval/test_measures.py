"""Figures of retrieval by their definitions, and rows for training from the same questions."""

import json

import pytest

from pipeline.core.errors import DataError, GateFailed
from pipeline.retrieval import measures, rows
from pipeline.retrieval.questions import read_questions
from pipeline.retrieval.search import Search
from pipeline.retrieval.stores.opening import open_store
from tests.unit.retrieval.indexes import WordEmbedder, index_config, make_index, write_documents

ROWS = [
    ("What does a wire abroad cost?", "A wire abroad costs 40 dollars.", None),
    ("My card is lost!", "Call 555-0142 if your card is lost.", None),
    ("Who may hand out money?", "See the limits.", "staff/limits.md:3"),
    ("Who is the president?", "Nobody here knows that.", None),
]


@pytest.fixture
def file(tmp_path):
    file = tmp_path / "rows.jsonl"
    with file.open("w") as stream:
        for question, answer, source in ROWS:
            turns = [
                {"role": "user", "content": question},
                {"role": "assistant", "content": answer},
            ]
            stream.write(json.dumps({"messages": turns, "source": source}) + "\n")
    return file


@pytest.fixture
def search(tmp_path):
    config = index_config(write_documents(tmp_path / "d"), labels={"staff/*": ["staff"]})
    index = make_index(tmp_path / "out", config, WordEmbedder())
    return Search(index, open_store(index), WordEmbedder())


def test_a_question_belongs_to_the_passage_that_it_names_or_that_holds_its_answer(file, search):
    questions, unanswered = read_questions([file], search.index)
    documents = [search.index.chunk(q.rows[0]).document for q in questions]
    assert documents == ["wires.md", "cards.txt", "staff/limits.md"]
    assert unanswered == 1


@pytest.mark.parametrize(
    ("line", "said"),
    [("{", "no conversation"), ('{"messages": []}', "no conversation"), ("[]", "no conversation")],
)
def test_a_line_that_is_no_conversation_is_named(tmp_path, search, line, said):
    file = tmp_path / "bad.jsonl"
    file.write_text(f"\n{line}\n")
    with pytest.raises(DataError, match=rf"bad\.jsonl:2: {said}"):
        read_questions([file], search.index)


def test_figures_are_those_of_their_definitions():
    assert measures.recall([5, 3], [3], 1) == 0
    assert measures.recall([5, 3], [3, 9], 2) == 1
    assert measures.reciprocal_rank([5, 3], [3]) == 0.5
    assert measures.reciprocal_rank([5], [3]) == 0
    assert measures.ndcg([3, 5], [3], 10) == 1
    assert measures.ndcg([5, 3], [3], 10) == pytest.approx(0.6309, abs=1e-4)
    assert measures.ndcg([3, 1, 9], [3, 9], 10) == pytest.approx(1.5 / 1.6309, abs=1e-4)


def test_measured_figures_have_intervals(file, search):
    questions, _ = read_questions([file], search.index)
    figures = measures.measure(search, questions)
    assert figures["recall@1"].value >= 2 / 3
    assert figures["recall@1"].low <= figures["recall@1"].value <= figures["recall@1"].high
    assert figures["mrr@10"].questions == 3
    assert measures.nothing_found(search, ["zebra quagga"], 0.25) == [1.0]


def test_the_command_prints_and_gates(file, search, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(measures.Index, "open", lambda folder: search.index)
    monkeypatch.setattr(measures, "open_embedder", lambda settings: WordEmbedder())
    monkeypatch.setattr(search.index, "close", lambda: None)
    others = tmp_path / "others.txt"
    others.write_text("zebra quagga\n")
    command = ["index", "--questions", str(file), "--others", str(others)]
    assert measures.main([*command, "--json", str(tmp_path / "f.json")]) == 0
    figures = json.loads((tmp_path / "f.json").read_text())
    assert figures["questions"] == 3
    assert figures["nothing_found"]["value"] == 1
    assert "recall@3" in capsys.readouterr().out
    monkeypatch.setattr(measures, "recall", lambda found, relevant, k: 0.5)
    assert measures.main([*command, "--min-recall", "1"]) == GateFailed.exit_code
    assert "recall@3 is" in capsys.readouterr().err


def kinds(search, file, **given):
    questions, _ = read_questions([file], search.index)
    settings = {
        "instruction": "Read.", "unknown": "I don't know.", "passages": 2, "wrong_share": 0.0,
        "none_share": 0.0, "cites": True, "seed": 1,
    }  # fmt: skip
    return list(rows.rows(search, questions, **(settings | given)))


def test_a_row_has_its_passage_and_cites_it(file, search):
    for row, (question, answer, _) in zip(kinds(search, file), ROWS, strict=False):
        asked, said = (turn["content"] for turn in row["messages"])
        number = said.rpartition("[")[2].rstrip("]")
        assert said == f"{answer} [{number}]"
        assert asked.startswith("Read.\n\n<passages>\n\n[1] ")
        assert asked.endswith(f"</passages>\n\n{question}")
        cited = asked.partition(f"[{number}] ")[2].partition("\n\n")[0]
        assert answer in cited or question == ROWS[2][0]  # whose passage has other words


def test_rows_with_other_passages_say_that_it_is_not_known(file, search):
    for row in kinds(search, file, wrong_share=1.0):
        asked, said = (turn["content"] for turn in row["messages"])
        assert (said, row["passages"]) == ("I don't know.", "wrong")
        assert "<passages>" in asked
        assert ROWS[0][1] not in asked or ROWS[0][0] not in asked


def test_rows_without_passages_are_as_they_were(file, search):
    found = kinds(search, file, none_share=1.0)
    assert [[t["content"] for t in row["messages"]] for row in found] == [
        list(row[:2]) for row in ROWS[:3]
    ]
