"""Guided answers match what they were asked to, whatever the model would rather say."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipeline.engines.base import Guide, Sampling
from pipeline.engines.batching.guided_decoding import Guides, _reason
from pipeline.engines.batching.sampling import Sampler
from pipeline.models.chat.renderer import Chat
from pipeline.serving.openai.protocol import MAX_GUIDED_CHOICES
from tests.unit.model_folders import make_model_folder

SCHEMA = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["wire", "card"]},
        "cost": {"type": "integer", "minimum": 0, "maximum": 99},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
    },
    "required": ["kind", "cost", "tags"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Chat:
    return Chat.load(make_model_folder(tmp_path_factory.mktemp("guides"), "demo"))


@pytest.fixture(scope="module")
def guides(chat: Chat) -> Guides:
    return Guides(chat)


def answer(chat: Chat, guides: Guides, guide: Guide, seed: int, **how: Any) -> str:
    """What a model that prefers tokens at random says under a guide."""
    random = np.random.default_rng(seed)
    sampler = Sampler(Sampling(max_tokens=400, seed=seed, **how), [], guides.begin(guide))
    tokens: list[int] = []
    while not tokens or tokens[-1] not in chat.stop_ids:
        assert len(tokens) < 400
        logits = random.normal(0, 3, chat.vocab_size + 7).astype(np.float32)
        tokens.append(sampler.choose(logits).id)
    return chat.decode(tokens)


@pytest.mark.parametrize("seed", range(8))
def test_a_schema_is_kept_to(chat: Chat, guides: Guides, seed: int) -> None:
    value = json.loads(answer(chat, guides, Guide("json_schema", json.dumps(SCHEMA)), seed))
    assert set(value) == {"kind", "cost", "tags"}
    assert value["kind"] in ("wire", "card")
    assert 0 <= value["cost"] <= 99
    assert all(isinstance(tag, bool) for tag in value["tags"])


@pytest.mark.parametrize("temperature", [0, 1])
def test_a_pattern_and_a_grammar_are_kept_to(
    chat: Chat, guides: Guides, temperature: float
) -> None:
    how = {"temperature": temperature}
    number = answer(chat, guides, Guide("regex", r"\d{3}-\d{2}"), 1, **how)
    assert re.fullmatch(r"\d{3}-\d{2}", number)
    grammar = Guide("lark", 'start: "It costs " ("5" | "18") " €"')
    assert answer(chat, guides, grammar, 1, **how) in ("It costs 5 €", "It costs 18 €")


def test_a_json_object_is_an_object(chat: Chat, guides: Guides) -> None:
    random = np.random.default_rng(3)
    opened = chat.tokenizer.encode("{", add_special_tokens=False).ids
    matching = guides.begin(Guide("json_object", ""))
    logits = random.normal(size=chat.vocab_size).astype(np.float32)
    matching.mask(logits)
    allowed = {chat.decode([int(i)]).strip()[:1] for i in np.flatnonzero(np.isfinite(logits))}
    assert allowed == {"{"}
    matching.accept(opened[0])


def test_guides_of_one_model_do_not_know_of_each_other(chat: Chat, guides: Guides) -> None:
    one, other = (guides.begin(Guide("regex", pattern)) for pattern in ("aa", "b"))
    one.accept(chat.tokenizer.encode("a", add_special_tokens=False).ids[0])
    logits = np.zeros(chat.vocab_size, np.float32)
    other.mask(logits)
    assert {chat.decode([int(i)]) for i in np.flatnonzero(np.isfinite(logits))} == {"b"}


@pytest.mark.parametrize(
    ("guide", "words"),
    [
        (Guide("json_schema", '{"type": "obj"}'), "obj"),
        (Guide("json_schema", "{"), "Expecting"),
        (Guide("json_schema", "[" * 5000 + "]" * 5000), "nested too deeply"),
        (Guide("json_schema", '{"$ref": "http://elsewhere/schema"}'), "guided"),
        (Guide("regex", "("), "regex"),
        (Guide("lark", "start: missing"), "missing"),
        (Guide("lark", ""), "guided"),
    ],
)
def test_what_is_no_guide_is_refused(guides: Guides, guide: Guide, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        guides.begin(guide)


def test_as_many_choices_as_the_protocol_takes_are_kept_to(chat: Chat, guides: Guides) -> None:
    choices = [f"Request {number}." for number in range(MAX_GUIDED_CHOICES)]
    grammar = "start: " + " | ".join(json.dumps(choice) for choice in choices)
    assert answer(chat, guides, Guide("lark", grammar), 1) in choices


def test_of_a_crash_of_the_library_only_its_message_is_shown() -> None:
    matcher: Any = SimpleNamespace(get_error=lambda: "too large\n<backtrace>\n 0: core::panic")
    assert _reason(matcher) == "guided decoding is not possible: too large"


def test_a_model_with_families_of_tokenizers(tmp_path: Path) -> None:
    for family in ("llama3", "mistral", "gemma"):
        chat = Chat.load(make_model_folder(tmp_path / family, family))
        text = answer(chat, Guides(chat), Guide("regex", "Domestic wires cost 18"), 2)
        assert text == "Domestic wires cost 18"
