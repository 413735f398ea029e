"""Guided answers match what they were asked to, whatever the model would rather say."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.engines.base import Guide, Sampling
from pipeline.engines.batching.guide_errors import plain
from pipeline.engines.batching.guided_decoding import Guides, lark_of, with_options
from pipeline.engines.batching.sampling import Sampler
from pipeline.models.chat.renderer import Chat
from pipeline.serving.openai.response_formats import MAX_GUIDED_CHOICES
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
        (Guide("json_schema", '{"type": "obj"}'), "the schema has the unknown type 'obj'"),
        (Guide("json_schema", "{"), "the schema is not valid JSON: Expecting"),
        (Guide("json_schema", "[" * 5000 + "]" * 5000), "nested too deeply"),
        (Guide("json_schema", "[1]"), "the schema must be a JSON object"),
        (Guide("json_schema", '{"$ref": "http://elsewhere/schema"}'), "only references within it"),
        (
            Guide("json_schema", '{"$ref": "#/$defs/none"}'),
            r"'/\$defs/none', which it does not have",
        ),
        (Guide("json_schema", '{"uniqueItems": true}'), "uses uniqueItems, which this server can"),
        (Guide("json_schema", '{"if": {}, "then": {}}'), "uses if, then, .*: leave them out"),
        (
            Guide("json_schema", '{"oneOf": [{"type": "string"}, {"type": "string"}]}'),
            "a oneOf whose branches overlap",
        ),
        (Guide("json_schema", '{"enum": []}'), "no value can satisfy the schema"),
        (Guide("json_schema", '{"type": "string", "format": "odd"}'), "the format 'odd'"),
        (Guide("json_schema", '{"type": "string", "pattern": "(?=a)b"}'), "look-around"),
        (Guide("regex", "("), "the regular expression is not valid: unclosed group"),
        (Guide("regex", r"\bfoo"), "look-around or word boundaries"),
        (Guide("regex", r"(a)\1"), "backreferences"),
        (Guide("lark", "start: missing"), "uses 'missing', which it does not define"),
        (Guide("lark", ""), "must define a rule named start"),
        (Guide("lark", 'a: "b"'), "must define a rule named start"),
        (Guide("lark", "start: ((("), "not valid at line 1, column 11"),
        (Guide("lark", "start: <[999999]>"), "a token that the model does not have"),
    ],
)
def test_what_is_no_guide_is_refused_in_plain_words(
    guides: Guides, guide: Guide, words: str
) -> None:
    with pytest.raises(ValueError, match=words) as refused:
        guides.begin(guide)
    assert not re.search(r"[<{}]|Unimplemented|NoExtension|parse error", str(refused.value))


@pytest.mark.parametrize(
    "guide",
    [
        Guide("json_schema", '{"$ref": "#"}'),
        Guide("json_schema", '{"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}'),
        Guide("lark", "start: start"),
    ],
)
def test_what_refers_to_itself_without_end_is_refused(
    chat: Chat, guides: Guides, guide: Guide
) -> None:
    matching = guides.begin(guide)
    with pytest.raises(ValueError, match=r"no text can satisfy the .*refer to itself without end$"):
        matching.mask(np.zeros(chat.vocab_size, np.float32))


def test_a_grammar_in_gbnf_becomes_lark() -> None:
    assert "start:" in lark_of('root ::= "a" | "b"')
    assert lark_of('start: "a"') == 'start: "a"'
    with pytest.raises(ValueError, match=r"Lark or GBNF notation \(line 1\)$"):
        lark_of("root ::= ((")
    with pytest.raises(ValueError, match="nested too deeply"):
        lark_of("root ::= " + "(" * 20_000)


def test_the_librarys_other_messages_are_not_shown() -> None:
    shown = plain("json_schema", "weird\n<backtrace>\n 0: core::panic")
    assert shown == "this server cannot follow the schema: simplify it"


FREE = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


@pytest.mark.parametrize("whitespace", [0, 1, 3])
@pytest.mark.parametrize("way", ["json_schema", "lark"])
def test_json_has_as_much_white_space_as_the_setting_allows(
    chat: Chat, guides: Guides, whitespace: int, way: Any
) -> None:
    """Also where the schema brings an option of its own."""
    text = json.dumps(
        with_options({**FREE, "x-guidance": {"whitespace_flexible": True}}, whitespace)
    )
    matching = guides.begin(Guide(way, text if way == "json_schema" else f"start: %json {text}"))
    for token in chat.encode('{"a":'):
        matching.accept(token)
    line, count = chat.encode("\n")[0], 0
    while count < 30:
        logits = np.zeros(chat.vocab_size, np.float32)
        matching.mask(logits)
        if not np.isfinite(logits[line]):
            break
        matching.accept(line)
        count += 1
    assert count == whitespace


def test_a_guide_is_compiled_once_and_answers_do_not_share_its_state(
    chat: Chat, guides: Guides, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.engines.batching import guided_decoding

    guide = Guide("regex", "xyz[0-9]{3}")
    first = guides.begin(guide)
    first.accept(chat.encode("x")[0])
    monkeypatch.setattr(guided_decoding, "compile_guide", None)
    assert answer(chat, guides, guide, 1).startswith("xyz")


def test_as_many_choices_as_the_protocol_takes_are_kept_to(chat: Chat, guides: Guides) -> None:
    choices = [f"Request {number}." for number in range(MAX_GUIDED_CHOICES)]
    grammar = "start: " + " | ".join(json.dumps(choice) for choice in choices)
    assert answer(chat, guides, Guide("lark", grammar), 1) in choices


def test_a_model_with_families_of_tokenizers(tmp_path: Path) -> None:
    for family in ("llama3", "mistral", "gemma"):
        chat = Chat.load(make_model_folder(tmp_path / family, family))
        text = answer(chat, Guides(chat), Guide("regex", "Domestic wires cost 18"), 2)
        assert text == "Domestic wires cost 18"
