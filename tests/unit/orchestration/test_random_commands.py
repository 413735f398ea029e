"""A share of the random command lines of tests/random_commands.py, and each word that is wrong."""

import pytest

from pipeline.orchestration import compose
from tests.random_commands import WRONG, Case, cases, judge, judge_process, report


@pytest.fixture(scope="module", autouse=True)
def _composed_once() -> None:
    compose.compose([])  # Hydra's import, which the first one would take the time of


def test_random_command_lines_are_accepted_or_refused_in_a_line() -> None:
    answers = [judge(case) for case in cases(seed=16, count=25)]
    assert [answer for answer in answers if answer.problem] == [], report(answers)


@pytest.mark.parametrize("word", WRONG, ids=lambda word: repr(word[:30]))
def test_a_wrong_word_is_refused(word: str) -> None:
    stages = () if word.startswith("stage") else ("stage=config",)
    assert judge(Case((*stages, word), word)).problem == ""


def test_a_process_answers_as_this_one_does() -> None:
    case = Case(("stage=all", "engine=1.5"), "engine=1.5")
    answer = judge_process(case)
    assert answer is not None
    assert (answer.code, answer.problem) == (judge(case).code, "")


def test_the_report_names_what_is_wrong() -> None:
    accepted = judge(Case(("stage=config",), "stage=config"))
    assert accepted.problem == "'stage=config' passes"
    assert "'stage=config': 'stage=config' passes" in report([accepted])
