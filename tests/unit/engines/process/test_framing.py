"""Messages between the server and its engine's process, however the bytes arrive."""

import socket
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.engines.base import Sampling, Token
from pipeline.engines.process.framing import Unpacker, pack, receive

MESSAGES = [
    (1, "generate", [1, 2, 3], Sampling(max_tokens=3, logit_bias={4: -1.0})),
    [(1, "tokens", [Token(5, -0.5, ((5, -0.5),))]), (2, "end", None)],
    ("ready", {"features": frozenset({"adapters"})}, 7),
]


@given(st.lists(st.integers(1, 40), max_size=30))
def test_messages_come_out_whole_however_they_are_cut(cuts: list[int]) -> None:
    left, found, unpacker = b"".join(map(pack, MESSAGES)), list[Any](), Unpacker()
    for size in cuts:
        found += unpacker.feed(left[:size])
        left = left[size:]
    found += unpacker.feed(left)
    assert found == MESSAGES


def test_one_message_is_received_and_the_next_is_left() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(pack(MESSAGES[0]) + pack(MESSAGES[1]) + pack(MESSAGES[2])[:-1])
        theirs.close()
        assert [receive(ours), receive(ours)] == MESSAGES[:2]
        with pytest.raises(EOFError):
            receive(ours)
