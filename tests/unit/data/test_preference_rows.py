"""Rows of pairs and labels: every known form gives the same pair, and each fault has a reason."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.config.finetune import OBJECTIVES, RowKind
from pipeline.data.preference_rows import EMPTY_SIDE, EQUAL, NO_LABEL, NO_PAIR, PROMPTS
from pipeline.data.preference_rows import parse_example as parse
from pipeline.data.reading import Options, read_file
from pipeline.data.row_formats import EXCLUDED, PAIRED, UNUSED
from pipeline.data.rows import Rejected
from pipeline.models.chat.messages import Unusable


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def said(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


GOOD, BAD = [user("q"), said("a")], [user("q"), said("b")]
HUMAN = "\n\nHuman: q\n\nAssistant: "
FORMS: list[dict[str, Any]] = [
    {"prompt": "q", "chosen": "a", "rejected": "b"},
    {"prompt": [user("q")], "chosen": [said("a")], "rejected": [said("b")]},
    {"prompt": "q", "chosen": [said("a")], "rejected": [said("b")]},
    {"chosen": GOOD, "rejected": BAD},
    {"prompt": "q", "messages": GOOD, "chosen": GOOD, "rejected": BAD, "score_chosen": 8.0},
    {"input": {"messages": [user("q")], "tools": [], "parallel_tool_calls": True},
     "preferred_output": [said("a")], "non_preferred_output": [said("b")]},
    {"messages": GOOD, "rejected_response": "b"},
    {"messages": [user("q")], "chosen": said("a"), "rejected": said("b")},
    {"conversations": [{"from": "human", "value": "q"}],
     "chosen": {"from": "gpt", "value": "a"}, "rejected": {"from": "gpt", "value": "b"}},
    {"instruction": "q", "input": "", "chosen": "a", "rejected": "b"},
    {"question": "q", "response_j": "a", "response_k": "b"},
    {"prompt": "q", "chosen_response": "a", "rejected_response": "b"},
    {"chosen": f"{HUMAN}a", "rejected": f"{HUMAN}b"},
    {"context": [user("q")], "completions": [{"rank": 1, "completion": [said("b")]},
                                             {"rank": 0, "completion": [said("a")]}]},
]  # fmt: skip


@pytest.mark.parametrize("row", FORMS)
def test_every_form_gives_the_same_pair(row: dict[str, Any]) -> None:
    parsed = parse(row, kind="pairs")
    assert (parsed.messages, parsed.rejected) == (GOOD, BAD)
    question = parse(row, kind="pairs", is_test=True)
    assert (question.messages, question.rejected) == (GOOD, None)


def test_only_what_follows_the_shared_turns_is_trained_on() -> None:
    before = [user("u"), said("v"), user("q")]
    parsed = parse({"chosen": [*before, said("a")], "rejected": [*before, said("b")]}, kind="pairs")
    context = [user("u"), {**said("v"), "weight": 0}, user("q")]
    assert parsed.messages == [*context, said("a")]
    assert parsed.rejected == [*context, said("b")]
    row = {"instruction": "q", "system": "s", "history": [["u", "v"]], "chosen": "a",
           "rejected": "b"}  # fmt: skip
    system = {"role": "system", "content": "s"}
    assert parse(row, kind="pairs").messages == [system, *context, said("a")]


FAULTS: list[tuple[RowKind, dict[str, Any], str]] = [
    ("pairs", {"prompt": "q", "chosen": "a", "rejected": "a"}, EQUAL),
    ("pairs", {"chosen": GOOD, "rejected": GOOD}, EQUAL),
    ("pairs", {"prompt": "q", "chosen": "a", "rejected": ""}, EMPTY_SIDE),
    ("pairs", {"prompt": "q", "chosen": [], "rejected": "b"}, EMPTY_SIDE),
    ("pairs", {"prompt": "q", "rejected": "b"}, EMPTY_SIDE),
    ("pairs", {"prompt": "q", "chosen": " ", "rejected": "b"}, "empty assistant turn"),
    ("pairs", {"chosen": GOOD, "rejected": [user("r"), said("b")]}, PROMPTS),
    ("pairs", {"prompt": "p", "chosen": GOOD, "rejected": BAD}, PROMPTS),
    ("pairs", {"chosen": "a", "rejected": "b"}, NO_PAIR),
    ("pairs", {"prompt": "q", "completion": "a"}, NO_PAIR),
    ("pairs", {"context": [user("q")], "completions": [{"rank": 0, "completion": "a"}]}, NO_PAIR),
    ("pairs", {"prompt": "q", "chosen": "a", "rejected": "b", "margins": 1}, UNUSED),
    ("pairs", {"prompt": "q", "chosen": "a", "rejected": "b", "weight": 0}, EXCLUDED),
    ("pairs", {"prompt": "q", "chosen": 5, "rejected": "b"}, "not text"),
    ("labels", {"prompt": "q", "completion": "a"}, NO_LABEL),
    ("labels", {"prompt": "q", "completion": "a", "label": 1}, NO_LABEL),
    ("labels", {"prompt": "q", "completion": "a", "label": True, "kto_tag": False}, NO_LABEL),
    ("labels", {"prompt": "q", "chosen": "a", "rejected": "b"}, NO_LABEL),
    ("labels", {"prompt": "q", "completion": "a", "label": True, "other": 1}, UNUSED),
    ("answers", {"prompt": "q", "chosen": "a", "rejected": "b"}, PAIRED),
    ("answers", {"prompt": "q", "completion": "a", "label": False}, EXCLUDED),
]


@pytest.mark.parametrize(("kind", "row", "reason"), FAULTS)
def test_each_fault_has_its_reason(kind: RowKind, row: dict[str, Any], reason: str) -> None:
    with pytest.raises(Unusable) as caught:
        parse(row, kind=kind)
    assert caught.value.reason == reason
    assert "\n" not in str(caught.value)


def test_labels_are_read_and_earlier_answers_are_context() -> None:
    row = {"messages": [user("u"), said("v"), user("q"), said("a")], "kto_tag": False}
    parsed = parse(row, kind="labels")
    assert parsed.label is False
    assert [m.get("weight", 1) for m in parsed.messages] == [1, 0, 1, 1]
    assert parse({"prompt": "q", "completion": "a", "label": True}, kind="labels").label is True


@pytest.mark.parametrize("objective", ["dpo", "kto"])
def test_rows_of_another_objective_say_what_to_set(objective: str) -> None:
    with pytest.raises(Unusable, match=r"finetune\.objective=(dpo|sft)"):
        parse({"prompt": "q", "completion": "a"}, kind="pairs")
    with pytest.raises(Unusable, match=r"set finetune\.objective=dpo"):
        parse(FORMS[0], kind="answers" if objective == "dpo" else "labels")


def test_sections_of_texts_have_no_pair(tmp_path: Path) -> None:
    file = tmp_path / "a.md"
    file.write_text("Title\n\n## q\na\n")
    assert not isinstance(next(read_file(file, "a.md")), Rejected)
    (row,) = read_file(file, "a.md", Options(kind="pairs"))
    assert isinstance(row, Rejected)
    assert (row.reason, row.line) == (NO_PAIR, 3)
    (row,) = read_file(file, "a.md", Options(kind="pairs", is_test=True))
    assert not isinstance(row, Rejected)


def test_the_table_names_each_kind() -> None:
    assert {one.rows for one in OBJECTIVES.values()} == {"answers", "pairs", "labels"}
