"""Duplicates, leaks and conflicts: what says the same is found, paraphrases are left alone."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data import deduplication
from pipeline.data.deduplication import (
    Comparable,
    Conflict,
    Match,
    are_alike,
    are_same,
    differ_in_case,
    normalise,
    normalise_answer,
)
from pipeline.data.passages import Passages
from pipeline.models.chat.messages import Message

QUESTION = "What does it cost to send a domestic wire transfer from my account?"
ANSWER = "Domestic wires cost 18 dollars and arrive the same day."


class Duplicates:
    """Those of the module, of rows that share no passage unless told otherwise."""

    def __init__(self, threshold: float, passages: Passages | None = None) -> None:
        self._of = deduplication.Duplicates(threshold, passages or Passages())

    def add(self, messages: list[Message], place: str) -> Match | None:
        return self._of.add(Comparable(messages, place))


class Leaks:
    def __init__(self, threshold: float, passages: Passages | None = None) -> None:
        self._of = deduplication.Leaks(threshold, passages or Passages())

    def add_test(self, messages: list[Message], place: str) -> None:
        self._of.add_test(Comparable(messages, place))

    def find(self, messages: list[Message]) -> Match | None:
        return self._of.find(Comparable(messages, "a:1"))


class Conflicts:
    def __init__(self) -> None:
        self._of = deduplication.Conflicts()

    def add(self, messages: list[Message], place: str) -> Conflict | None:
        return self._of.add(Comparable(messages, place))


def shared(*texts: str) -> Passages:
    """Passages of a data set with these questions."""
    passages = Passages()
    for text in texts:
        passages.add(normalise(text))
    return passages


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
        ("What is [] in Python?", "What is () in Python?", False),
        ("What is 2²?", "What is 22?", False),
        ("ＡＢＣ", "abc", True),
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
    assert answers.add(ask(QUESTION, ANSWER.rstrip(".")), "a:2") is None
    conflict = answers.add(ask(QUESTION.lower(), "They are free."), "a:3")
    assert conflict is not None
    assert (conflict.place, conflict.other) == ("a:3", "a:1")
    assert answers.add(ask("Hi.", "Hello!", QUESTION, "They are free."), "a:4") is None


INSTRUCTION = (
    "You sort letters that arrive at the town hall. Read the letter below with care and answer "
    "with one word, which is the name of the office that has to deal with it: water, roads, "
    "schools, parks or taxes. Never answer with anything but the one word. Here is the letter: "
)
LETTERS = [
    "My tap is dry.",
    "My tap is old.",
    "A hole in Elm Road.",
    "Brown water again.",
    "The swing is loose.",
    "My road is dry.",
]


@pytest.mark.parametrize("threshold", [0.9, 0.97])
@pytest.mark.parametrize(
    "form", ["{0}{1}", "{1} {0}", "Begin. {0}{1} End of the letter, thank you."]
)
def test_rows_that_share_an_instruction_are_no_duplicates_and_no_leaks(
    threshold: float, form: str
) -> None:
    others = [f"A{c} bench {c * 4} is {c * 3} broken {c * 5}." for c in "bcdefghijk"]
    letters = [*LETTERS[2:5], *others] if threshold < 0.95 else [*LETTERS, *others]
    texts = [form.format(INSTRUCTION, letter) for letter in letters]
    passages = shared(*texts)
    seen, leaks = Duplicates(threshold, passages), Leaks(threshold, passages)
    leaks.add_test(ask(form.format(INSTRUCTION, "The water is cold."), "water"), "t:1")
    for i, text in enumerate(texts):
        assert leaks.find(ask(text, "water")) is None, text
        assert seen.add(ask(text, "water"), f"a:{i}") is None, text


def test_questions_about_one_text_are_no_leaks_of_each_other() -> None:
    """With two rows, nothing says that their passage is shared: the difference is in one place."""
    text = "Harbor Bank opened its first branch in a former customs house. " * 20
    leaks = Leaks(0.97)
    leaks.add_test(ask(text + "Where was the first branch?", "There."), "t:1")
    assert leaks.find(ask(text + "Who sold the house to the bank?", "The city.")) is None
    assert leaks.find(ask(text + "Where was the first brnach?", "There.")) is not None


WORDS = [
    "".join(chance.choices("abcdefghijklmnop", k=chance.randint(3, 9)))
    for chance in [random.Random(1)]
    for _ in range(400)
]


def edits(text: str, chance: random.Random) -> list[str]:
    """The same question, written by someone else."""
    words = text.split()
    at = chance.choice([i for i, word in enumerate(words) if len(word) > 4 and word.isalpha()])
    word = words[at]
    typo = word[:2] + word[3] + word[2] + word[4:]
    return [
        text.upper(),
        text.capitalize(),
        text + " ...",
        "  " + text.replace(" ", "\n", 3),
        f"\u201c{text}\u201d",
        " ".join([*words[:at], typo, *words[at + 1 :]]),
        " ".join([*words[:at], word + "s", *words[at + 1 :]]),
    ]


@pytest.mark.parametrize("instruction", ["", INSTRUCTION])
def test_edited_rows_are_still_found(instruction: str) -> None:
    """Of 100 rows, with a shared instruction or without, every edit is a duplicate and a leak."""
    chance = random.Random(2)
    texts = [
        instruction + " ".join(chance.choices(WORDS, k=chance.randint(14, 20))) for _ in range(100)
    ]
    edited = [edits(text, chance) for text in texts]
    passages = shared(*texts, *(e for some in edited for e in some[:2] + some[-2:]))
    seen, leaks = Duplicates(0.97, passages), Leaks(0.97, passages)
    for i, text in enumerate(texts):
        assert seen.add(ask(text, "Yes."), f"a:{i}") is None
        leaks.add_test(ask(text, "Yes."), f"t:{i}")
    missed = 0
    for i, some in enumerate(edited):
        for edit in some:
            found, leak = seen.add(ask(edit, "Yes."), "b:1"), leaks.find(ask(edit, "No."))
            missed += found is None or found.place != f"a:{i}"
            missed += leak is None or leak.place != f"t:{i}"
    assert missed <= 0.01 * 2 * sum(map(len, edited))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Yes, it is open today.", "yes, it is open today", False),
        ("Yes, it is open today.", "Yes, it is open today!", True),
        ("US", "us", False),
        ("x = []", "x = {}", False),
        ("if a:\n    b\nc", "if a:\n    b\n    c", False),
        ("a  b\nc", "a b c", True),
        ("-5", "5", False),
        ("3.5", "35", False),
    ],
)
def test_normalising_answers(one: str, other: str, same: bool) -> None:
    assert (normalise_answer(one) == normalise_answer(other)) is same


LONG = (
    "Yes, it is part of the account that you hold with us, and it costs you nothing more for as "
    "long as the account stays open and holds money."
)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (LONG, LONG.replace("account", "acount", 1), True),
        (LONG, LONG.replace("Yes, it is", "No, it isn't"), False),
        (LONG, LONG.replace("it is part", "it is not part"), False),
        (LONG, LONG.replace("costs", "saves"), False),
        (LONG + " 5", LONG + " 6", False),
        ("Hund", "Hand", False),
    ],
)
def test_answers_are_the_same_but_for_typing_errors(one: str, other: str, same: bool) -> None:
    assert are_same(normalise_answer(one), normalise_answer(other), 0.97) is same


def test_opposite_answers_are_a_conflict_and_no_duplicate() -> None:
    seen, answers = Duplicates(0.97), Conflicts()
    rows = [ask(QUESTION, LONG), ask(QUESTION, LONG.replace("Yes, it is", "No, it isn't"))]
    assert [seen.add(row, f"a:{i}") for i, row in enumerate(rows)] == [None, None]
    assert answers.add(rows[0], "a:0") is None
    assert answers.add(rows[1], "a:1") == Conflict(QUESTION, "a:1", "a:0")


@pytest.mark.parametrize(
    ("one", "other", "differ"),
    [
        ("What does US mean?", "What does us mean?", True),
        ("What does US mean?", "what does us mean", True),
        ("What does Polish mean?", "What does polish mean?", True),
        ("WHAT DOES US MEAN?", "What does us mean?", False),
        ("How do I block my Visa card?", "how do i block my visa card", False),
        ("How Do I Block It?", "How do I block it?", False),
        ("I lost it. What now?", "I lost it. what now?", False),
    ],
)
def test_words_that_case_tells_apart(one: str, other: str, differ: bool) -> None:
    assert differ_in_case(one, other) is differ


def test_case_matters_where_answers_differ() -> None:
    one, other = "What does US mean here?", "What does us mean here?"
    leaks, answers, seen = Leaks(0.97), Conflicts(), Duplicates(0.97)
    leaks.add_test(ask(one, "A country."), "t:1")
    assert leaks.find(ask(other, "The two of us.")) is None
    assert leaks.find(ask(other, "A country.")) is not None
    assert seen.add(ask(one, "A country."), "a:1") is None
    assert seen.add(ask(other, "The two of us."), "a:2") is None
    assert answers.add(ask(one, "A country."), "a:1") is None
    assert answers.add(ask(other, "The two of us."), "a:2") is None
    assert answers.add(ask(one, "a country."), "a:3") is not None


def test_rows_that_train_on_other_turns_are_no_exact_duplicates() -> None:
    turns = ask("Hi.", "Hello!", QUESTION, ANSWER)
    context = [turns[0], {**turns[1], "weight": 0}, *turns[2:]]
    assert Comparable(turns, "").digest != Comparable(context, "").digest


def pair(place: str, question: str, good: str, bad: str) -> Comparable:
    return Comparable(ask(question, good), place, ask(question, bad))


def test_pairs_are_duplicates_only_if_both_sides_are() -> None:
    seen = deduplication.Duplicates(0.97, Passages())
    assert seen.add(pair("1", QUESTION, ANSWER, "It costs a lot.")) is None
    assert seen.add(pair("2", QUESTION, ANSWER, "It costs nothing.")) is None
    assert seen.add(pair("3", QUESTION.upper(), ANSWER, "It costs a lot")) == Match("1", False)
    assert seen.add(pair("4", QUESTION, ANSWER, "It costs a  lot.")) == Match("1", True)


def test_labels_are_duplicates_only_if_they_say_the_same() -> None:
    seen = deduplication.Duplicates(0.97, Passages())
    good, bad = (
        Comparable(ask(QUESTION, ANSWER), f"{label}", label=label) for label in (True, False)
    )
    assert seen.add(good) is None
    assert seen.add(bad) is None
    verdicts = deduplication.Conflicts()
    assert verdicts.add(good) is None
    assert verdicts.add(bad) == Conflict(QUESTION, "False", "True")


def test_a_pair_the_other_way_round_is_a_conflict() -> None:
    seen = deduplication.Conflicts()
    assert seen.add(pair("1", QUESTION, ANSWER, "Nothing.")) is None
    assert seen.add(pair("2", QUESTION, "A lot.", "Nothing.")) is None
    assert seen.add(pair("3", QUESTION, "Nothing.", ANSWER)) == Conflict(QUESTION, "3", "1")


def test_a_test_answer_on_the_rejected_side_leaks() -> None:
    leaks = deduplication.Leaks(0.97, Passages())
    leaks.add_test(Comparable(ask("I have a card.", "Good.", "And what now?", ANSWER), "test:1"))
    before = ("I want to send a wire.", "Gladly.", "And what now?")
    sides = [ask(*before, text) for text in ("Nothing.", ANSWER)]
    assert leaks.find(Comparable(sides[0], "1")) is None
    assert leaks.find(Comparable(sides[0], "1", sides[1])) == Match("test:1", True)
