"""Incremental text: complete characters, nothing lost, nothing after a stop string."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from pipeline.models.chat.renderer import Chat
from pipeline.serving.openai import detokenizer
from pipeline.serving.openai.detokenizer import Detokenizer
from tests.unit.model_folders import make_model_folder


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Chat:
    return Chat.load(make_model_folder(tmp_path_factory.mktemp("text"), "demo"))


def sentencepiece(names: list[str]) -> Tokenizer:
    """A tokenizer with Llama 2's decoder: a space before each word, and bytes as <0xE2>."""
    vocab = {name: i for i, name in enumerate(names)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(["</s>"])
    return tokenizer


def parts_of(tokenizer: Tokenizer, names: list[str]) -> list[str]:
    """The text that each of these tokens adds, then the text that the end adds."""
    stream = Detokenizer(tokenizer)
    return [*(stream.push(tokenizer.token_to_id(name)) for name in names), stream.finish()]


def read(chat: Chat, ids: list[int], stops: list[str]) -> tuple[list[str], bool]:
    """Pieces until the stop, and whether there was one."""
    stream, pieces = Detokenizer(chat.tokenizer, stops), []
    for token in ids:
        pieces.append(stream.push(token))
        if stream.stopped:
            return pieces, True
    pieces.append(stream.finish())
    return pieces, stream.stopped


@given(st.lists(st.integers(0, 300), max_size=40))
def test_pieces_joined_are_the_text_of_any_tokens(chat: Chat, ids: list[int]) -> None:
    pieces, _ = read(chat, ids, [])
    assert "".join(pieces) == chat.decode(ids)


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(1, 40)), max_size=6))
def test_also_of_tokens_that_are_repeated(chat: Chat, runs: list[tuple[int, int]]) -> None:
    ids = [token for token, times in runs for _ in range(times)]
    pieces, _ = read(chat, ids, [])
    assert "".join(pieces) == chat.decode(ids)


def test_control_tokens_within_a_character_do_not_end_it(chat: Chat) -> None:
    first, second = chat.tokenizer.encode("é", add_special_tokens=False).ids
    control = chat.tokenizer.token_to_id("<|end|>")
    for between in (1, 15, 16, 40):
        pieces, _ = read(chat, [first, *[control] * between, second], [])
        assert "".join(pieces) == "é"


@given(st.text(st.sampled_from("añ€🌍 xy\n"), max_size=30))
def test_no_text_ends_within_a_character(chat: Chat, text: str) -> None:
    ids = chat.tokenizer.encode(text, add_special_tokens=False).ids
    pieces, _ = read(chat, ids, [])
    assert not any("\ufffd" in piece for piece in pieces)
    assert "".join(pieces) == text


@given(
    st.text(st.sampled_from("ab \n€"), max_size=30),
    st.lists(st.text(st.sampled_from("ab \n€"), min_size=1, max_size=4), min_size=1, max_size=4),
)
def test_text_ends_before_the_first_stop(chat: Chat, text: str, stops: list[str]) -> None:
    ids = chat.tokenizer.encode(text, add_special_tokens=False).ids
    pieces, stopped = read(chat, ids, stops)
    shown = "".join(pieces)
    assert stopped == any(stop in text for stop in stops)
    assert text.startswith(shown)
    assert not any(stop in shown for stop in stops)
    if stopped:
        assert any(text[len(shown) :].startswith(stop) for stop in stops)
    else:
        assert shown == text


def test_a_possible_beginning_of_a_stop_is_delayed(chat: Chat) -> None:
    stream = Detokenizer(chat.tokenizer, ["END"])
    ids = [chat.tokenizer.token_to_id(c) for c in "xENd"]
    assert [stream.push(token) for token in ids] == ["x", "", "", "ENd"]


def test_a_word_keeps_its_space_after_a_control_token() -> None:
    tokenizer = sentencepiece(["</s>", "▁a", "▁b"])
    assert parts_of(tokenizer, ["▁a", "</s>", "▁b"]) == ["a", "", " b", ""]


def test_invalid_bytes_after_a_character_in_bytes() -> None:
    """The decoder now writes the é, which was returned, as U+FFFD, and DecodeStream raises."""
    tokenizer = sentencepiece(["</s>", "▁a", "<0xC3>", "<0xA9>", "<0xFF>"])
    names = ["<0xC3>", "<0xA9>", "<0xFF>", "▁a", "▁a"]
    assert parts_of(tokenizer, names) == ["", "é", "", "\ufffd a", " a", ""]


def test_an_incomplete_character_is_written_at_the_end(chat: Chat) -> None:
    half = chat.tokenizer.encode("é", add_special_tokens=False).ids[0]
    assert read(chat, [half], [])[0] == ["", "\ufffd"]


@pytest.mark.parametrize("text", ["é", "<|end|>"])
def test_many_tokens_without_text_do_not_slow_one_another_down(
    chat: Chat, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client can make a model write them (logit_bias, ignore_eos) while other clients wait."""
    token = chat.tokenizer.encode(text, add_special_tokens=False).ids[0]
    decoded = []

    class Counting:
        def __init__(self, ids: list[int], skip_special_tokens: bool) -> None:
            self._waiting = len(ids)

        def step(self, tokenizer: Tokenizer, token: int) -> None:
            self._waiting += 1
            decoded.append(self._waiting)

    monkeypatch.setattr(detokenizer, "DecodeStream", Counting)
    read(chat, [token] * 500, [])
    assert len(decoded) >= 500
    assert max(decoded) <= 40
