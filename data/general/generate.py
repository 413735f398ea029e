#!/usr/bin/env python3
"""Generate general English: plain documents and chats, without end and always the same per seed.

A tiny model that starts from nothing needs to see how English works before it can be fine-tuned:
word order, articles, pronouns, the many ways to ask one question, and copying an answer from the
text above. This module provides that from word lists (words.txt), paragraph plans (frames.txt)
and everyday questions (facts.txt). It knows nothing about banks.

  sentences(seed)      yields paragraphs of about 2 to 6 sentences
  conversations(seed)  yields chats as lists of OpenAI messages ({"role", "content"})

Both are infinite; take as many as needed, for example with itertools.islice.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Callable, Iterator
from functools import cache
from itertools import islice
from pathlib import Path

HERE = Path(__file__).resolve().parent
Message = dict[str, str]
Words = dict[str, tuple[str, ...]]

SLOT = re.compile(r"\{(a )?([a-z_]+)(\d?)(?::([a-z]+))?\}")
SENTENCE_START = re.compile(r'(^|[.!?]"? )"?$')
PRONOUNS = {
    "woman": {"he": "she", "his": "her", "him": "her"},
    "man": {"he": "he", "his": "his", "him": "him"},
}
PLURALS = {
    "mouse": "mice", "goose": "geese", "sheep": "sheep", "deer": "deer", "salmon": "salmon",
    "trout": "trout", "moose": "moose", "bison": "bison", "wolf": "wolves", "leaf": "leaves",
    "knife": "knives", "mango": "mangoes", "potato": "potatoes", "tomato": "tomatoes",
    "hero": "heroes", "echo": "echoes", "volcano": "volcanoes", "tornado": "tornadoes",
    "hoof": "hooves", "shelf": "shelves", "scarf": "scarves", "thief": "thieves",
    "elf": "elves", "postman": "postmen", "fireman": "firemen", "fisherman": "fishermen",
    "snowman": "snowmen", "reindeer": "reindeer", "library shelf": "library shelves",
    "buffalo": "buffaloes", "cactus": "cacti", "shrimp": "shrimp", "starfish": "starfish",
    "oasis": "oases", "pocketknife": "pocketknives",
}  # fmt: skip
PAST = {
    "read": "read", "write": "wrote", "build": "built", "swim": "swam", "run": "ran",
    "ride": "rode", "drive": "drove", "catch": "caught", "draw": "drew", "take": "took",
    "sing": "sang", "sweep": "swept", "feed": "fed", "make": "made", "set": "set",
    "send": "sent", "buy": "bought", "sell": "sold", "teach": "taught", "throw": "threw",
    "dig": "dug", "hang": "hung", "choose": "chose", "tell": "told", "find": "found",
    "lose": "lost", "hide": "hid", "sleep": "slept", "wake": "woke", "weave": "wove",
    "drink": "drank", "eat": "ate", "get": "got", "go": "went", "have": "had", "do": "did",
    "forget": "forgot", "understand": "understood", "sink": "sank", "spin": "spun",
    "weep": "wept", "grow": "grew", "shine": "shone", "break": "broke", "bend": "bent",
    "shrink": "shrank", "freeze": "froze", "swing": "swung", "slide": "slid",
    "spread": "spread", "light": "lit",
}  # fmt: skip
LABEL_SHARE = 0.08  # of the documents
LABEL_CHARACTERS = "".join(map(chr, range(33, 127)))
LABEL_MARKS = (" ", " ", " ", "; ", ", ", ". ", ": ", "-", " - ", "/", "\n", "! ", "? ", " (", ") ")
DOUBLED = frozenset(
    "chop stir plan knit skip trim wrap dig swim run get set hum nod slip spin forget rot grin "
    "clap shop prefer".split()
)

SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a friendly assistant. Keep it short.",
    "Answer in one sentence.",
    "You talk with people about everyday things.",
    "Be polite and brief.",
)
CONTEXT_PROMPTS = (
    "Answer from the text.",
    "Use only what the message says.",
    "Read the text and answer the question.",
)
HOWTO_FRAMES = (
    "How do I {x}?", "how to {x}", "How can I {x}?", "Can you tell me how to {x}?",
    "I want to {x}.", "I would like to {x}, can you help?", "Please help me {x}.",
    "What is the best way to {x}?", "Please tell me how to {x}.", "need help, I must {x}",
    "{x}", "I have never tried to {x} before. How does it work?", "could you explain how to {x}",
    "Is it possible to {x} today?", "What do I need to do to {x}?", "I am trying to {x}.",
    "Do you know how to {x}?", "what are the steps to {x}", "My friend wants to {x}.",
    "I'd like to {x}", "What should I do if I want to {x}?", "Where can I learn to {x}?",
    "Teach me to {x}, please.", "is there an easy way to {x}", "Help! I have to {x} now.",
    "I don't know how to {x}.", "So I need to {x}, any idea?", "tell me the way to {x}",
)  # fmt: skip
WHAT_FRAMES = (
    "What is {x}?", "Can you tell me {x}?", "I would like to know {x}.", "Do you know {x}?",
    "tell me {x}", "Please tell me {x}.", "{x}", "{x}?", "whats {x}", "I want to know {x}",
    "Could you say what {x} is?", "I forgot {x}. What is it?", "Give me {x}, please.",
    "I need to know {x} for school.", "My teacher asked me for {x}.", "name {x}",
    "Please help me, what is {x}?", "I am asking about {x}.",
    "what would you say is {x}", "Quick question about {x}.", "Any idea what {x} is?",
)  # fmt: skip
SUM_FRAMES = (
    "What is {a} {op} {b}?", "{a} {op} {b}", "Can you tell me what {a} {op} {b} is?",
    "How much is {a} {op} {b}?", "Please work out {a} {op} {b}.", "I need to know {a} {op} {b}.",
    "tell me {a} {op} {b}", "What do I get for {a} {op} {b}?",
)  # fmt: skip
REPEAT_FRAMES = (
    "Repeat after me: {x}", "Say this: {x}", "Please repeat: {x}", "Can you say this? {x}",
    "Copy this sentence: {x}", "Write the same again: {x}",
)  # fmt: skip
FOLLOW_UPS = ("Thanks!", "Thank you very much.", "thanks, that helps", "Great, thank you.")
FOLLOW_ANSWERS = ("You are welcome!", "Happy to help!", "Any time!")


def _sections(name: str) -> dict[str, list[str]]:
    """Read a [section] file of this folder into its non-empty, non-comment lines."""
    sections: dict[str, list[str]] = {}
    for line in (HERE / name).read_text(encoding="ascii").splitlines():
        if line.startswith("["):
            current = sections.setdefault(line.strip("[]"), [])
        elif line and not line.startswith("#"):
            current.append(line)
    return sections


@cache
def _words() -> Words:
    joined = {key: " ".join(lines) for key, lines in _sections("words.txt").items()}
    return {
        key: tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
        for key, text in joined.items()
    }


@cache
def _facts(kind: str) -> tuple[tuple[str, str], ...]:
    pairs = (line.split(" | ") for line in _sections("facts.txt")[kind])
    return tuple((question, answer) for question, answer in pairs)


@cache
def _frames() -> dict[str, tuple[Frame, ...]]:
    return {kind: tuple(map(Frame, lines)) for kind, lines in _sections("frames.txt").items()}


def article(noun: str) -> str:
    """Put the right indefinite article before a word."""
    vowel = noun[0] in "aeiou" and not noun.startswith(("uni", "use", "usu"))
    return f"{'an' if vowel or noun.startswith(('hour', 'honest')) else 'a'} {noun}"


@cache
def inflect(word: str, form: str) -> str:
    """Plural of a noun ("pl"), or "s", "ed" or "ing" form of a phrase's leading verb."""
    if form == "pl":
        if word in PLURALS:
            return PLURALS[word]
        return _add_s(word)
    verb, _, rest = word.partition(" ")
    if form == "s":
        verb = {"have": "has", "do": "does"}.get(verb) or _add_s(verb)
    elif form == "ed" and verb in PAST:
        verb = PAST[verb]
    elif verb in DOUBLED:
        verb += verb[-1] + form
    elif form == "ed":
        past_y = verb.endswith("y") and verb[-2] not in "aeiou"
        verb = verb[:-1] + "ied" if past_y else verb + ("d" if verb.endswith("e") else "ed")
    elif form == "ing":
        silent_e = verb.endswith("e") and not verb.endswith(("ee", "oe", "ye"))
        verb = (verb[:-1] if silent_e else verb) + "ing"
    else:
        raise ValueError(f"unknown form {form!r}")
    return f"{verb} {rest}".rstrip()


def _add_s(word: str) -> str:
    if word.endswith("y") and word[-2] not in "aeiou":
        return word[:-1] + "ies"
    return word + ("es" if word.endswith(("s", "x", "z", "ch", "sh")) or word == "go" else "s")


class Frame:
    """A paragraph plan, parsed once: literal texts with slots between them."""

    def __init__(self, text: str) -> None:
        self.parts: list[str | tuple[bool, str, str, str, bool]] = []
        position = 0
        for match in SLOT.finditer(text):
            self.parts.append(text[position : match.start()])
            art, name, tag, form = match.groups()
            start = bool(SENTENCE_START.search(text[: match.start()]))
            if name != "person" and name not in _words():
                raise ValueError(f"unknown slot {name!r} in {text!r}")
            self.parts.append((art is not None, name, name + tag if tag else "", form or "", start))
            position = match.end()
        self.parts.append(text[position:])

    def fill(self, rng: random.Random) -> str:
        """Fill the slots; no word is picked twice, and tagged slots keep their word."""
        bound: dict[str, tuple[str, str]] = {}
        used: set[str] = set()
        out = []
        for part in self.parts:
            if isinstance(part, str):
                out.append(part)
                continue
            art, name, tag, form, start = part
            picked = bound.get(tag)
            if picked is None:
                picked = _pick(rng, name, used)
                if tag:
                    bound[tag] = picked
            word, section = picked
            if form:
                person = section in PRONOUNS
                word = PRONOUNS[section][form] if person else inflect(word, form)
            if art:
                word = article(word)
            out.append(word[0].upper() + word[1:] if start else word)
        return "".join(out)


def _pick(rng: random.Random, name: str, used: set[str]) -> tuple[str, str]:
    section = ("woman" if rng.random() < 0.5 else "man") if name == "person" else name
    words = _words()[section]
    word = words[int(rng.random() * len(words))]
    for _ in range(3):
        if word not in used:
            break
        word = words[int(rng.random() * len(words))]
    used.add(word)
    return word, section


def sentences(seed: int) -> Iterator[str]:
    """Yield plain paragraphs forever; the same seed gives the same paragraphs."""
    rng = random.Random(f"sentences {seed}")
    frames = _frames()
    plans = tuple(kind for kind in frames if kind not in ("single", "money", "fact"))
    while True:
        roll = rng.random()
        if roll < LABEL_SHARE:
            yield labels(rng)
            continue
        if roll < 0.5:
            yield rng.choice(frames[rng.choice(plans)]).fill(rng)
            continue
        kinds = ("single", "single", "money") if roll < 0.8 else ("single", "single", "fact")
        count = rng.randint(2, 5)
        yield " ".join(rng.choice(frames[rng.choice(kinds)]).fill(rng) for _ in range(count))


def labels(rng: random.Random) -> str:
    """A list of labels: codes and cut words between punctuation marks.

    Plain English never shows a model some letters, marks and pieces of words. Their rows in the output
    layer would stay as they were initialised, and an adapter, which leaves that layer frozen, could
    hardly ever produce them: a single semicolon kept low-rank tuning below 80 % exact answers.
    """
    words = _label_words()

    def label() -> str:
        if rng.random() < 0.4:
            return "".join(rng.choice(LABEL_CHARACTERS) for _ in range(rng.randint(1, 6)))
        word = rng.choice(words)
        start = rng.randint(0, max(0, len(word) - 2)) if rng.random() < 0.5 else 0
        piece = word[start : start + rng.randint(1, len(word))]
        return piece.capitalize() if rng.random() < 0.3 else piece

    parts = [label() + rng.choice(LABEL_MARKS) for _ in range(rng.randint(4, 16))]
    return "".join(parts).strip()


@cache
def _label_words() -> tuple[str, ...]:
    text = (HERE / "words.txt").read_text() + (HERE / "facts.txt").read_text()
    return tuple(sorted(set(re.findall(r"[A-Za-z]{3,}", text))))


def _chat(*contents: str) -> list[Message]:
    """Messages that alternate between the user and the assistant."""
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]


def _ask(rng: random.Random, frames: tuple[str, ...], topic: str) -> str:
    text = rng.choice(frames).replace("{x}", topic)
    return text if rng.random() < 0.3 else text[0].upper() + text[1:]


def _howto(rng: random.Random) -> list[Message]:
    topic, answer = rng.choice(_facts("howto"))
    return _chat(_ask(rng, HOWTO_FRAMES, topic), answer)


def _what(rng: random.Random) -> list[Message]:
    topic, answer = rng.choice(_facts("what"))
    return _chat(_ask(rng, WHAT_FRAMES, topic), answer)


def _talk(rng: random.Random) -> list[Message]:
    questions, answer = rng.choice(_facts("talk"))
    return _chat(rng.choice(questions.split(" / ")), answer)


def _sum(rng: random.Random) -> list[Message]:
    a, b = rng.randint(1, 12), rng.randint(1, 12)
    op = rng.choice(("plus", "minus"))
    if op == "minus":
        a, b = a + b, a
    result = a + b if op == "plus" else a - b
    question = rng.choice(SUM_FRAMES).format(a=a, b=b, op=op)
    return _chat(question, f"{a} {op} {b} is {result}.")


def _repeat(rng: random.Random) -> list[Message]:
    if rng.random() < 0.3:
        sentence = labels(rng)
    else:
        sentence = rng.choice(_frames()[rng.choice(("single", "fact", "money"))]).fill(rng)
    return _chat(rng.choice(REPEAT_FRAMES).format(x=sentence), sentence)


def _order(rng: random.Random) -> list[Message]:
    """Which word comes first or last: reading positions in the text above."""
    words = rng.sample(_words()[rng.choice(("animal", "object", "fruit", "color"))], 3)
    listing = f"{words[0]}, {words[1]}, {words[2]}"
    which, word = rng.choice((("first", words[0]), ("last", words[2])))
    frame = rng.choice(
        (
            f"Which word comes {which}: {listing}?",
            f"Here are three words: {listing}. Which one is {which}?",
            f"Tell me the {which} word of this list: {listing}",
            f"{listing}. What is the {which} word?",
        )
    )
    return _chat(frame, f"The {which} word is {word}.")


def _people(rng: random.Random, count: int) -> list[tuple[str, str]]:
    used: set[str] = set()
    return [_pick(rng, "person", used) for _ in range(count)]


def _has(rng: random.Random) -> list[Message]:
    """Who has what: the answer has to be copied from the right half of the text."""
    (one, _), (two, _) = _people(rng, 2)
    colors = rng.sample(_words()["plaincolor"], 2)
    things = rng.sample(_words()["small_object"], 2)
    items = [article(f"{color} {thing}") for color, thing in zip(colors, things, strict=True)]
    context = f"{one} has {items[0]} and {two} has {items[1]}."
    index = rng.randrange(2)
    name, thing, item, color = (one, two)[index], things[index], items[index], colors[index]
    question, answer = rng.choice(
        (
            (f"What does {name} have?", f"{name} has {item}."),
            (f"Can you tell me what {name} has?", f"{name} has {item}."),
            (f"I want to know what {name} has.", f"{name} has {item}."),
            (f"Who has the {thing}?", f"{name} has the {thing}."),
            (f"Please tell me who has the {thing}.", f"{name} has the {thing}."),
            (f"What color is the {thing}?", f"The {thing} is {color}."),
            (f"Which color does the {thing} have?", f"The {thing} is {color}."),
        )
    )
    return _chat(f"{context} {question}", answer)


def _where(rng: random.Random) -> list[Message]:
    """Where things are and when places open, each asked in many ways."""
    things = rng.sample(_words()["small_object"], 2)
    spots = rng.sample(_words()["spot"], 2)
    index = rng.randrange(2)
    thing, spot = things[index], spots[index]
    question = rng.choice(
        (
            f"Where is the {thing}?", f"where can I find the {thing}", f"I need the {thing}.",
            f"Can you tell me where the {thing} is?", f"I am looking for the {thing}.",
            f"Please help me find the {thing}.", f"Do you know where to look for the {thing}?",
        )
    )  # fmt: skip
    context = f"The {things[0]} is {spots[0]}. The {things[1]} is {spots[1]}."
    return _chat(f"{context} {question}", f"The {thing} is {spot}.")


def _opening(rng: random.Random) -> list[Message]:
    places = rng.sample(_words()["public"], 2)
    times = rng.sample(_words()["clock"], 2)
    index = rng.randrange(2)
    verb = rng.choice(("open", "close"))
    place, time = places[index], times[index]
    context = " ".join(f"The {p} {verb}s at {t}." for p, t in zip(places, times, strict=True))
    question = rng.choice(
        (
            f"When does the {place} {verb}?", f"What time does the {place} {verb}?",
            f"I would like to know when the {place} will {verb}.",
            f"Can you tell me when the {place} {verb}s?", f"{place}, when does it {verb}",
            f"Please tell me at what time the {place} {verb}s.",
        )
    )  # fmt: skip
    return _chat(f"{context} {question}", f"The {place} {verb}s at {time}.")


def _remember(rng: random.Random) -> list[Message]:
    """A fact told in the first turn and asked for in a later one."""
    name, _ = _people(rng, 1)[0]
    hobby, town = rng.choice(_words()["hobby"]), rng.choice(_words()["town"])
    told, questions, answer = rng.choice(
        (
            (
                rng.choice((f"My name is {name}.", f"I am {name}.", f"Hi, I am called {name}.")),
                ("What is my name?", "Do you remember my name?", "who am I", "Tell me my name."),
                f"Your name is {name}.",
            ),
            (
                rng.choice((f"I like {hobby}.", f"My hobby is {hobby}.", f"I enjoy {hobby}.")),
                ("What do I like?", "What is my hobby?", "Tell me what I like to do."),
                f"You like {hobby}.",
            ),
            (
                rng.choice((f"I live in {town}.", f"My home is in {town}.")),
                ("Where do I live?", "Which town do I live in?", "Can you say where I live?"),
                f"You live in {town}.",
            ),
        )
    )
    reply = rng.choice(("Nice to know!", "Thank you for telling me.", "That is good to hear."))
    if "name" in answer:
        reply = f"Nice to meet you, {name}!"
    return _chat(told, reply, rng.choice(questions), answer)


def _text_question(rng: random.Random) -> list[Message]:
    """A short text about several people, and a question on one of them."""
    people = _people(rng, 3)
    lists = _words()
    facts: list[tuple[str, tuple[str, ...], str]] = []
    for name, gender in people:
        he = PRONOUNS[gender]["he"].capitalize()
        town, job = rng.choice(lists["town"]), article(rng.choice(lists["job"]))
        activity = rng.choice(lists["activity"])
        done = inflect(activity, "ed")
        facts.append(
            rng.choice(
                (
                    (
                        f"{name} lives in {town}.",
                        (f"Where does {name} live?", f"Can you tell me where {name} lives?",
                         f"In which town does {name} live?", f"tell me the town of {name}"),
                        f"{he} lives in {town}.",
                    ),
                    (
                        f"{name} is {job}.",
                        (f"What is {name}'s job?", f"What does {name} do for work?",
                         f"I would like to know the job of {name}.", f"job of {name}?"),
                        f"{name} is {job}.",
                    ),
                    (
                        f"Yesterday {name} {done}.",
                        (f"What did {name} do yesterday?", f"Tell me what {name} did.",
                         f"Do you know what {name} did yesterday?"),
                        f"{name} {done}.",
                    ),
                )
            )
        )  # fmt: skip
    context = " ".join(told for told, _, _ in facts)
    _, questions, answer = rng.choice(facts)
    separator = rng.choice((" ", "\n", "\n\nQuestion: "))
    return _chat(f"{context}{separator}{rng.choice(questions)}", answer)


CONTEXT_KINDS = (_has, _where, _opening, _text_question)
CHAT_KINDS: tuple[Callable[[random.Random], list[Message]], ...] = (
    _howto, _howto, _howto, _what, _what, _talk, _talk, _sum, _repeat, _order, _remember,
    *CONTEXT_KINDS,
)  # fmt: skip


def conversations(seed: int) -> Iterator[list[Message]]:
    """Yield chats forever; some have a system prompt, some have several turns."""
    rng = random.Random(f"conversations {seed}")
    while True:
        kind = rng.choice(CHAT_KINDS)
        chat = kind(rng)
        roll = rng.random()
        if roll < 0.08:
            chat = _talk(rng) + chat
        elif roll < 0.16:
            chat = chat + rng.choice((_howto, _what, _sum))(rng)
        elif roll < 0.20:
            chat = chat + _chat(rng.choice(FOLLOW_UPS), rng.choice(FOLLOW_ANSWERS))
        if rng.random() < 0.15:
            single_context = kind in CONTEXT_KINDS and len(chat) == 2
            prompts = CONTEXT_PROMPTS if single_context else SYSTEM_PROMPTS
            chat = [{"role": "system", "content": rng.choice(prompts)}, *chat]
        yield chat


def main(argv: list[str] | None = None) -> None:
    """Print samples: each document on its own line, each chat as one JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=1, help="same seed, same text (default 1)")
    parser.add_argument("--documents", type=int, default=5, help="documents to print (default 5)")
    parser.add_argument("--conversations", type=int, default=5, help="chats to print (default 5)")
    args = parser.parse_args(argv)
    for document in islice(sentences(args.seed), max(args.documents, 0)):
        print(document)
    for chat in islice(conversations(args.seed), max(args.conversations, 0)):
        print(json.dumps({"messages": chat}))


if __name__ == "__main__":
    main()
