"""Rows of other trainers' formats mean what their authors meant, or name what has no effect."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.preference_rows import parse_example as parse_row
from pipeline.data.row_formats import EXCLUDED, METADATA, PAIRED, UNUSED
from pipeline.models.chat.messages import Unusable

USER, ASSISTANT = {"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello!"}
SYSTEM = {"role": "system", "content": "Be brief."}
TALK = [USER, ASSISTANT]


def said(*texts: str) -> list[dict[str, Any]]:
    return [
        {"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(texts)
    ]


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"messages": [SYSTEM, *TALK]}, [SYSTEM, *TALK]),
        ({"messages": TALK, "prompt": "Hi.", "prompt_id": "a1"}, TALK),
        ({"prompt": [USER], "completion": "Hello!"}, TALK),
        (
            {"messages": [{**ASSISTANT, "role": "model"}, USER, {**ASSISTANT, "role": "ai"}]},
            [{**ASSISTANT, "weight": 0}, *TALK],
        ),
        ({"messages": [SYSTEM, ASSISTANT, *TALK]}, [SYSTEM, {**ASSISTANT, "weight": 0}, *TALK]),
        ({"messages": [{**ASSISTANT, "weight": 1}, *TALK]}, [ASSISTANT, *TALK]),
        ({"messages": [USER, *TALK]}, [USER, *TALK]),
        ({"messages": TALK, "system": "Be brief."}, [SYSTEM, *TALK]),
        ({"messages": TALK, "weight": 1, "train": True}, TALK),
        ({"prompt": "Hi.", "completion": " Hello!\n"}, TALK),
        ({"prompt": "Hi.", "completion": "Hello!", "label": True}, TALK),
        ({"prompt": [USER], "completion": [ASSISTANT]}, TALK),
        ({"input": "Hi.", "output": "Hello!", "system": "Be brief."}, [SYSTEM, *TALK]),
        (
            {"instruction": "Translate.", "input": "dog", "output": "chien"},
            said("Translate.\ndog", "chien"),
        ),
        ({"instruction": "Count.", "input": "", "output": "3"}, said("Count.", "3")),
        ({"instruction": "Count.", "input": None, "output": "3"}, said("Count.", "3")),
        ({"instruction": "", "input": "Hi.", "output": "Hello!"}, TALK),
        (
            {"instruction": "Who?", "context": "It was I.", "response": "I", "category": "qa"},
            said("Who?\nIt was I.", "I"),
        ),
        (
            {"instruction": "Hi.", "output": "Hello!", "history": [["a", "b"], ["", ""]]},
            said("a", "b", "Hi.", "Hello!"),
        ),
        (
            {
                "conversations": [
                    {"from": "human", "value": "Hi."},
                    {"from": "gpt", "value": "Hello!"},
                ]
            },
            TALK,
        ),
        ({"conversations": TALK, "tools": "", "images": []}, TALK),
        (
            {
                "mask": "User",
                "system": "Be brief.",
                "conversations": [
                    {"from": "User", "value": "Hi.", "label": None},
                    {"from": "Assistant", "value": "Hello!"},
                ],
            },
            [SYSTEM, *TALK],
        ),
    ],
)
def test_formats_of_other_trainers(row: dict[str, Any], messages: list[dict[str, Any]]) -> None:
    assert parse_row(row).messages == messages


@pytest.mark.parametrize("mark", ["weight", "train", "training", "trainable", "loss"])
@pytest.mark.parametrize("no", [0, False])
def test_turns_that_are_not_trained_on(mark: str, no: Any) -> None:
    turns = [{**USER, mark: no}, {**ASSISTANT, mark: no}, USER, {**ASSISTANT, mark: 1}]
    assert [turn.get("weight", 1) for turn in parse_row({"messages": turns}).messages[1::2]] == [
        0,
        1,
    ]
    share = {
        "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b", mark: no}]
    }
    assert parse_row(share).messages[1]["weight"] == 0


def test_only_the_completion_of_lists_of_turns_is_trained_on() -> None:
    row = {"prompt": [*TALK, USER], "completion": [ASSISTANT]}
    assert [turn.get("weight", 1) for turn in parse_row(row).messages[1::2]] == [0, 1]


@pytest.mark.parametrize(
    "mark", ["weight", "train", "training", "trainable", "loss", "label", "kto_tag"]
)
@pytest.mark.parametrize("ignored", [(), ("weight", "label", "kto_tag", "loss")])
def test_rows_that_are_not_to_be_trained_on(mark: str, ignored: tuple[str, ...]) -> None:
    for row in (
        {"messages": TALK},
        {"prompt": "a", "completion": "b"},
        {"input": "a", "output": "b"},
    ):
        with pytest.raises(Unusable, match=mark) as caught:
            parse_row({**row, mark: False}, ignored)
        assert (caught.value.reason, caught.value.field) == (EXCLUDED, mark)


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"messages": TALK, "history": [["a", "b"]]}, "history"),
        ({"messages": TALK, "context": "c"}, "context"),
        ({"messages": TALK, "weight": 0.5}, "weight"),
        ({"messages": TALK, "weight": "0"}, "weight"),
        ({"messages": TALK, "label": 0}, "label"),
        ({"messages": TALK, "label": "positive"}, "label"),
        ({"messages": TALK, "mask": True}, "mask"),
        ({"messages": TALK, "split": "test"}, "split"),
        (
            {"messages": TALK, "chat_template_kwargs": {"enable_thinking": False}},
            "chat_template_kwargs",
        ),
        ({"messages": TALK, "images": ["a.png"]}, "images"),
        ({"messages": [SYSTEM, *TALK], "system": "Shout."}, "system"),
        ({"messages": TALK, "prompt": "Hi"}, "prompt"),
        ({"prompt": "a", "completion": "b", "input": "c"}, "input"),
        ({"prompt": "a", "completion": "b", "context": "c"}, "context"),
        ({"prompt": "a", "completion": "b", "ground_truth": "c"}, "ground_truth"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "chosen"),
        ({"instruction": "a", "input": "", "chosen": "b", "rejected": "c"}, "chosen"),
        ({"chosen": TALK, "rejected": TALK}, "chosen"),
        ({"messages": [USER], "rejected_response": "c"}, "rejected_response"),
        (
            {"input": {"messages": [USER]}, "preferred_output": [1], "non_preferred_output": [1]},
            "preferred_output",
        ),
        ({"instruction": "a", "output": "b", "history": ["a"]}, "history"),
        ({"messages": [{**USER, "weight": 1}, ASSISTANT]}, "weight"),
        ({"messages": [{**USER, "train": True}, ASSISTANT]}, "train"),
        ({"messages": [USER, {**ASSISTANT, "weight": 2}]}, "weight"),
        (
            {"messages": [USER, {**ASSISTANT, "train_detail": [{"begin_offset": 0}]}]},
            "train_detail",
        ),
        ({"messages": [USER, {**ASSISTANT, "mask": True}]}, "mask"),
        ({"messages": [USER, {**ASSISTANT, "refusal": "No."}]}, "refusal"),
        (
            {
                "messages": [
                    USER,
                    {
                        "role": "assistant",
                        "content": [{"type": "text", "text": "Hello!", "train": False}],
                    },
                ]
            },
            "train",
        ),
        ({"messages": [USER, {**ASSISTANT, "value": "Hello?"}]}, "value"),
        ({"conversations": [USER, {**ASSISTANT, "label": "quality:4"}]}, "label"),
        ({"messages": TALK, "\x1b[31mred": 1}, "\\x1b[31mred"),
        ({"messages": [{**USER, "file": "invoice.pdf"}, ASSISTANT]}, "file"),
        ({"messages": [{**USER, "url": "https://a.example/cat.png"}, ASSISTANT]}, "url"),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "text", "text": "Read it.", "path": "a.txt"}],
                    },
                    ASSISTANT,
                ]
            },
            "path",
        ),
    ],
)
def test_fields_without_effect_refuse_the_row_by_name(row: dict[str, Any], field: str) -> None:
    with pytest.raises(Unusable) as caught:
        parse_row(row)
    preferring = {"chosen", "rejected_response", "preferred_output"}
    assert caught.value.reason == (PAIRED if preferring & row.keys() else UNUSED)
    assert caught.value.field == field
    assert f"data.ignore_fields=[{field}]" in str(caught.value)
    assert str(caught.value).isprintable()


def test_metadata_and_fields_to_ignore_are_counted() -> None:
    turns = [{**USER, "id": "1"}, {**ASSISTANT, "emotion": "calm", "thinking": "Hm."}]
    row = {"messages": turns, "source": "web", "tags": [], "history": [["a", "b"]], "text": "x"}
    parsed = parse_row(row, ignored=("history", "text", "emotion", "thinking"))
    assert parsed.messages == TALK
    assert parsed.left_out == {"id", "source", "history", "text", "emotion", "thinking"}


def test_fields_that_a_template_may_write_stay() -> None:
    turns = [{**USER, "name": "Ann"}, {**ASSISTANT, "reasoning_content": "Greet."}]
    assert parse_row({"messages": turns}).messages == turns


@pytest.mark.parametrize("answer", ["    return x", "\tx = 1\n\tif x:\n\t\ty()", "  - a\n    - b"])
@pytest.mark.parametrize(
    "form", [("prompt", "completion"), ("input", "output"), ("instruction", "output")]
)
def test_code_keeps_its_indentation(answer: str, form: tuple[str, str]) -> None:
    row = {form[0]: f"\n{answer}\n", form[1]: f"\n \n{answer} \n\n"}
    assert [turn["content"] for turn in parse_row(row).messages] == [answer, answer]


keys = st.sampled_from(
    "messages conversations prompt completion instruction input output system history weight label "
    "role content from value chosen id x".split()
)
values = st.recursive(
    st.none() | st.booleans() | st.integers(0, 2) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4),
)


@settings(deadline=None, max_examples=50)
@given(st.dictionaries(keys, values))
def test_every_field_with_a_value_is_used_or_named(row: dict[str, Any]) -> None:
    try:
        parsed = parse_row(row)
    except Unusable:
        return
    assert parsed.messages[-1]["role"] == "assistant"
    assert parsed.left_out <= METADATA
    assert "x" not in row or row["x"] in (None, "", [], {})
