from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.core.errors import DataError
from pipeline.data.dataset import Row
from pipeline.stages import evaluate
from pipeline.stages.evaluate import question


def row(ids: list[int], mask: list[int], prompt: list[int]) -> Row:
    return Row([], ids, mask, "test.jsonl:7", prompt, "text")


def test_a_question_is_the_prompt_and_the_tokens_to_answer_with() -> None:
    # An earlier turn of the assistant, and white space behind the end of the last.
    asked = question(row([1, 2, 3, 4, 5, 6], [0, 1, 0, 1, 1, 0], [1, 2, 3]))
    assert (asked.prompt, asked.expected) == ([1, 2, 3], [4, 5])


@pytest.mark.parametrize(
    ("ids", "mask", "prompt"),
    [([1, 2, 3], [0, 0, 1], [1, 9]), ([1, 2, 3], [0, 1, 0], [1, 2]), ([1, 2], [0, 1], [])],
)
def test_a_prompt_that_is_no_beginning_is_refused(
    ids: list[int], mask: list[int], prompt: list[int]
) -> None:
    with pytest.raises(DataError, match=r"test\.jsonl:7"):
        question(row(ids, mask, prompt))


def test_passages_of_a_general_text_are_windows_of_their_own(tmp_path: Path) -> None:
    text = tmp_path / "general.txt"
    text.write_text("one two three\n \nfour\n\n" + "five " * 2000 + "\n\n\nsix seven\n")
    config: Any = SimpleNamespace(evaluate=SimpleNamespace(general_text=text))
    chat: Any = SimpleNamespace(encode=str.split)
    windows = evaluate._windows(chat, config)
    # A passage of one token predicts nothing, and a long one is cut.
    assert [len(window) for window in windows] == [3, 1024, 976, 2]
    text.write_text("one\n\ntwo\n")
    with pytest.raises(DataError, match="fewer than two tokens"):
        evaluate._windows(chat, config)
