"""Incremental text: complete characters, nothing lost, nothing after a stop string."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.models.chat.renderer import Chat
from pipeline.serving.openai.detokenizer import Detokenizer
from tests.unit.model_folders import make_model_folder


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Chat:
    return Chat.load(make_model_folder(tmp_path_factory.mktemp("text"), "demo"))


def read(chat: Chat, ids: list[int], stops: list[str]) -> tuple[list[str], bool]:
    """Pieces until the stop, and whether there was one."""
    stream, pieces = Detokenizer(chat.decode, stops), []
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
    stream = Detokenizer(chat.decode, ["END"])
    ids = [chat.tokenizer.token_to_id(c) for c in "xENd"]
    assert [stream.push(token) for token in ids] == ["x", "", "", "ENd"]
