import pytest

from pipeline.core.errors import DataError
from pipeline.data.dataset import Row
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
