#!/usr/bin/env python3
"""Build the Harbor Bank data files from the hand-written intents.

The intents (``intents/*.yaml``) are the only files to edit. Everything else in this folder is
derived from them with a fixed seed, so the same intents always give byte-identical files:

  train.jsonl                    chat rows in OpenAI form ({"messages": [...]})
  train_prompt_completion.jsonl  rows of {"prompt", "completion"}
  train_nemo.jsonl               rows of {"input", "output"}
  test.jsonl                     chat rows with phrasings that no training file holds
  sources/<topic>.txt            the knowledge base: one section per intent

An intent's training phrasings are its canonical question and its ``train`` list. Each of them is
the final question of exactly one row of the three training files.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
SEED = 20240917
TOPICS = {
    "loans": "Harbor Bank: Loans",
    "credit_cards": "Harbor Bank: Credit Cards",
    "accounts": "Harbor Bank: Accounts and Branch Services",
}
MIN_INTENTS = 66
MIN_TRAIN = 13
MIN_TEST = 3
ANSWER_WORDS = range(8, 21)
ALTERNATIVE_ROWS = 60  # rows in each of the two files that are not in chat form
TRAIN_SYSTEM, TRAIN_TURNS = 0.12, 0.10  # shares of rows with a system prompt / an earlier turn
TEST_SYSTEM, TEST_TURNS = 0.10, 0.08

SYSTEM_PROMPTS = (
    "You are the support assistant of Harbor Bank.",
    "You are a helpful assistant. Answer in one sentence.",
    "Answer the customer's question briefly and politely.",
    "You help customers of Harbor Bank with loans, cards and accounts.",
)
SMALL_TALK = (
    ("Hello!", "Hello! How can I help you today?"),
    ("Hi there", "Hi! What can I do for you?"),
    ("Good morning", "Good morning! How may I help?"),
    ("hey, is anyone there?", "Yes, I am here. What would you like to know?"),
    ("I have a question.", "Sure, please go ahead."),
)

Message = dict[str, str]
Row = dict[str, Any]


class DataError(Exception):
    """A mistake in the intents, worded so that its place can be found at once."""


@dataclass(frozen=True)
class Intent:
    """One thing that customers ask for, with its single answer."""

    topic: str
    id: str
    question: str
    answer: str
    train: tuple[str, ...]
    test: tuple[str, ...]

    @property
    def training_phrasings(self) -> tuple[str, ...]:
        """The canonical question counts as a training phrasing too."""
        return (self.question, *self.train)


def normalize(text: str) -> str:
    """Lower-case and drop punctuation: phrasings equal after this are the same to a reader."""
    return " ".join(re.sub(r"[^a-z0-9 ]", "", text.lower().replace("-", " ")).split())


def load_intents(folder: Path) -> list[Intent]:
    """Read and validate every topic; raise DataError at the first mistake."""
    intents = [intent for topic in TOPICS for intent in _load_topic(folder / f"{topic}.yaml")]
    if len(intents) < MIN_INTENTS:
        raise DataError(f"{folder}: {len(intents)} intents, at least {MIN_INTENTS} are needed")
    _check_unique(intents)
    return intents


def _load_topic(path: Path) -> list[Intent]:
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path.name}: cannot be read: {reason}") from error
    if not isinstance(entries, list):
        raise DataError(f"{path.name}: must hold a list of intents")
    return [_parse_intent(path, number, entry) for number, entry in enumerate(entries, start=1)]


def _parse_intent(path: Path, number: int, entry: Any) -> Intent:
    name = entry.get("id") if isinstance(entry, dict) else None
    where = f"{path.name}: {name or f'intent number {number}'}"
    keys = {"id", "question", "answer", "train", "test"}
    if not isinstance(entry, dict) or set(entry) != keys:
        raise DataError(f"{where}: must have exactly the keys {', '.join(sorted(keys))}")
    for key in ("id", "question", "answer"):
        _check_text(f"{where}: {key}", entry[key])
    for key, least in (("train", MIN_TRAIN), ("test", MIN_TEST)):
        if not isinstance(entry[key], list) or len(entry[key]) < least:
            raise DataError(f"{where}: {key} must list at least {least} phrasings")
        for phrasing in entry[key]:
            _check_text(f"{where}: {key} phrasing", phrasing)
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", entry["id"]):
        raise DataError(f"{where}: id must be snake_case")
    words = len(entry["answer"].split())
    if words not in ANSWER_WORDS:
        low, high = ANSWER_WORDS.start, ANSWER_WORDS.stop - 1
        raise DataError(f"{where}: answer has {words} words, must have {low} to {high}")
    return Intent(
        topic=path.stem,
        id=entry["id"],
        question=entry["question"],
        answer=entry["answer"],
        train=tuple(entry["train"]),
        test=tuple(entry["test"]),
    )


def _check_text(where: str, text: Any) -> None:
    if not isinstance(text, str) or not normalize(text):
        raise DataError(f"{where}: {text!r} is not text (quote it if it looks like a number)")
    if not text.isascii() or not text.isprintable() or text != " ".join(text.split()):
        raise DataError(f"{where}: {text!r} must be one line of plain ASCII, single-spaced")


def _check_unique(intents: Iterable[Intent]) -> None:
    seen: dict[tuple[str, str], str] = {}
    for intent in intents:
        where = f"{intent.topic}.yaml: {intent.id}"
        texts = [("id", intent.id), ("answer", intent.answer)]
        texts += [("phrasing", text) for text in (*intent.training_phrasings, *intent.test)]
        for kind, text in texts:
            key = (kind, intent.id if kind == "id" else normalize(text))
            if key in seen:
                raise DataError(f"{where}: {kind} {text!r} is already used in {seen[key]}")
            seen[key] = where


def chat_rows(
    pairs: list[tuple[Intent, str]],
    intents: list[Intent],
    rng: random.Random,
    system_share: float,
    turns_share: float,
) -> list[Row]:
    """Turn phrasings into chat rows; exact shares get a system prompt or an earlier turn."""
    with_system = set(rng.sample(range(len(pairs)), round(system_share * len(pairs))))
    with_turns = set(rng.sample(range(len(pairs)), round(turns_share * len(pairs))))
    rows = []
    for index, (intent, phrasing) in enumerate(pairs):
        messages: list[Message] = []
        if index in with_system:
            messages.append({"role": "system", "content": rng.choice(SYSTEM_PROMPTS)})
        if index in with_turns:
            messages += _exchange(*_earlier_turn(intent, intents, rng))
        messages += _exchange(phrasing, intent.answer)
        rows.append({"messages": messages, "intent": intent.id, "topic": intent.topic})
    return rows


def _earlier_turn(intent: Intent, intents: list[Intent], rng: random.Random) -> tuple[str, str]:
    """Small talk, or another intent's question: its training phrasings only, never a test one."""
    if rng.random() < 0.4:
        return rng.choice(SMALL_TALK)
    other = rng.choice([candidate for candidate in intents if candidate.id != intent.id])
    return rng.choice(other.training_phrasings), other.answer


def _exchange(question: str, answer: str) -> list[Message]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def source_text(topic: str, intents: Iterable[Intent]) -> str:
    """The knowledge base document of one topic."""
    sections = [f"## {i.question}\n{i.answer}" for i in intents if i.topic == topic]
    return "\n\n".join([TOPICS[topic], *sections]) + "\n"


def build(intents: list[Intent]) -> dict[str, str]:
    """Every generated file: its path inside this folder and its text."""
    rng = random.Random(SEED)
    train = [(intent, text) for intent in intents for text in intent.training_phrasings]
    test = [(intent, text) for intent in intents for text in intent.test]
    rng.shuffle(train)
    completions = train[:ALTERNATIVE_ROWS]
    nemo = train[ALTERNATIVE_ROWS : 2 * ALTERNATIVE_ROWS]
    chat = train[2 * ALTERNATIVE_ROWS :]
    files = {
        "train.jsonl": _jsonl(chat_rows(chat, intents, rng, TRAIN_SYSTEM, TRAIN_TURNS)),
        "train_prompt_completion.jsonl": _jsonl(
            {"prompt": text, "completion": intent.answer} for intent, text in completions
        ),
        "train_nemo.jsonl": _jsonl(
            {"input": text, "output": intent.answer} for intent, text in nemo
        ),
        "test.jsonl": _jsonl(chat_rows(test, intents, rng, TEST_SYSTEM, TEST_TURNS)),
    }
    for topic in TOPICS:
        files[f"sources/{topic}.txt"] = source_text(topic, intents)
    return files


def _jsonl(rows: Iterable[Row]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def stale_files(files: dict[str, str], folder: Path) -> list[str]:
    """Names of files that are missing or differ from what would be written."""
    return [
        name
        for name, text in files.items()
        if not (folder / name).is_file() or (folder / name).read_bytes() != text.encode("ascii")
    ]


def main(argv: list[str] | None = None) -> int:
    """Write the files, or with --check compare them with those on disk."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="write nothing; exit 1 unless the files on disk are exactly what would be written",
    )
    args = parser.parse_args(argv)
    try:
        intents = load_intents(HERE / "intents")
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    files = build(intents)
    if args.check:
        stale = stale_files(files, HERE)
        for name in stale:
            print(f"error: {name} is missing or out of date; run make.py", file=sys.stderr)
        return 1 if stale else 0
    for name, text in files.items():
        path = HERE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode("ascii"))
        unit = "rows" if name.endswith(".jsonl") else "lines"
        print(f"{name}: {text.count(chr(10))} {unit}")
    print(f"{len(intents)} intents")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
