"""Duplicates, leaks and conflicts: what says the same is found, paraphrases are left alone."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.deduplication import (
    Conflicts,
    Duplicates,
    Leaks,
    Match,
    are_alike,
    normalise,
)
from pipeline.models.chat.messages import Message

QUESTION = "What does it cost to send a domestic wire transfer from my account?"
ANSWER = "Domestic wires cost 18 dollars and arrive the same day."


def ask(*turns: str) -> list[Message]:
    return [{"role": "assistant" if i % 2 else "user", "content": t} for i, t in enumerate(turns)]


@given(st.text())
def test_normalising_again_changes_nothing(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Hello,  World!", "hello world", True),
        ("“Why?”", "why", True),
        ("Rate: 8.9 percent", "rate 89 percent", False),
        ("What is C++?", "What is C#?", False),
        ("?", "!", False),
    ],
)
def test_normalising(one: str, other: str, same: bool) -> None:
    assert (normalise(one) == normalise(other)) is same


def test_numbers_make_a_difference() -> None:
    assert are_alike("a loan of 20000 dollars please", "a loan of 20000 dollar please", 0.9)
    assert not are_alike("a loan of 20000 dollars please", "a loan of 30000 dollars please", 0.9)


def test_exact_duplicate_is_one_up_to_white_space() -> None:
    seen = Duplicates(0.97)
    assert seen.add(ask(QUESTION, ANSWER), "a:1") is None
    assert seen.add(ask(QUESTION.replace(" ", "  ") + "\n", ANSWER), "a:2") == Match(
        "a:1", exact=True
    )


@pytest.mark.parametrize(
    "other",
    [
        ask(QUESTION.upper(), ANSWER),
        ask(QUESTION.replace("?", " ..."), ANSWER + "!"),
        ask(QUESTION.replace("send", "sent"), ANSWER),
    ],
)
def test_near_duplicate(other: list[Message]) -> None:
    seen = Duplicates(0.97)
    seen.add(ask(QUESTION, ANSWER), "a:1")
    assert seen.add(other, "a:2") == Match("a:1", exact=False)


@pytest.mark.parametrize(
    "other",
    [
        ask("How much is a domestic wire transfer?", ANSWER),  # a paraphrase
        ask(QUESTION, "They are free."),
        ask(QUESTION.replace("domestic", "foreign"), ANSWER),
        [{"role": "system", "content": "Be brief."}, *ask(QUESTION, ANSWER)],
        ask("Hi.", "Hello!", QUESTION, ANSWER),
    ],
)
def test_what_differs_is_no_duplicate(other: list[Message]) -> None:
    seen = Duplicates(0.97)
    seen.add(ask(QUESTION, ANSWER), "a:1")
    assert seen.add(other, "a:2") is None


def test_same_long_context_does_not_hide_a_different_question() -> None:
    system = {"role": "system", "content": "You are the support assistant of a bank. " * 50}
    seen = Duplicates(0.9)
    assert seen.add([system, *ask("Fees?", ANSWER)], "a:1") is None
    assert seen.add([system, *ask("Rates?", ANSWER)], "a:2") is None


def test_near_duplicates_are_found_among_many() -> None:
    """Candidates come from MinHash bands: nearly all pairs must share one."""
    chance = random.Random(1)
    words = [
        "".join(chance.choices("abcdefghijklmnop", k=chance.randint(3, 9))) for _ in range(500)
    ]
    questions = [" ".join(chance.choices(words, k=chance.randint(6, 14))) for _ in range(1000)]
    seen = Duplicates(0.9)
    assert all(seen.add(ask(q, "x"), f"a:{i}") is None for i, q in enumerate(questions))
    found = tried = 0
    for i, question in enumerate(questions[:400]):
        letters = list(question)
        for _ in range(len(letters) // 14):
            letters[chance.randrange(len(letters))] = "z"
        if are_alike(normalise(question), normalise("".join(letters)), 0.9):
            tried += 1
            found += seen.add(ask("".join(letters), "x"), "b:1") == Match(f"a:{i}", exact=False)
    assert tried > 300
    assert found >= 0.97 * tried


@pytest.mark.parametrize(
    ("training", "match"),
    [
        (ask(QUESTION, "Anything else."), Match("t:1", exact=True)),
        (ask(QUESTION.lower().rstrip("?"), "x"), Match("t:1", exact=True)),
        (ask(QUESTION.replace("send", "sent"), "x"), Match("t:1", exact=False)),
        (ask("Hi.", "Hello!", QUESTION, "x"), Match("t:1", exact=True)),
        (ask(QUESTION, "x", "Thanks.", "y"), Match("t:1", exact=True)),
        (ask("How much is a wire transfer inside the country?", ANSWER), None),
        (ask("Is it open on Sunday?", "No.", "And the fee?", "18 dollars."), None),
        (ask("Tell me of wires.", "Gladly.", "And the fee?", "x"), Match("t:2", exact=True)),
        (ask("And the fee?", "Wires cost 18 dollars."), Match("t:2", exact=True)),
    ],
)
def test_leaks(training: list[Message], match: Match | None) -> None:
    leaks = Leaks(0.97)
    leaks.add_test(ask(QUESTION, ANSWER), "t:1")
    leaks.add_test(
        ask("Tell me of wires.", "Yes?", "And the fee?", "Wires cost 18 dollars."), "t:2"
    )
    assert leaks.find(training) == match


def test_conflicts() -> None:
    answers = Conflicts()
    assert answers.add(ask(QUESTION, ANSWER), "a:1") is None
    assert answers.add(ask(QUESTION, ANSWER.upper()), "a:2") is None
    conflict = answers.add(ask(QUESTION.lower(), "They are free."), "a:3")
    assert conflict is not None
    assert (conflict.place, conflict.other) == ("a:3", "a:1")
    assert answers.add(ask("Hi.", "Hello!", QUESTION, "They are free."), "a:4") is None
