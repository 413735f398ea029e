"""Documents that hold the tokens which a corpus hardly uses.

A token that never occurs keeps the output row of the other tokens that never occur: they all get
the same gradient. A fine-tuned model then cannot tell them apart, because an adapter leaves the
output layer frozen: an answer that needs one of them gets any of the others as well.
"""

import random
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np

from pipeline.models.chat.renderer import Chat

PIECES = (4, 12)  # of a document
MARKS = ("\n", "\n", "/", ";", ",", ":", "-", " (")  # between two: none ends in a space


def rare_documents(chat: Chat, ids: Any, *, least: int, seed: int) -> Iterator[Sequence[int]]:
    """Documents as token ids, made of rare tokens.

    ids: token ids of the corpus. least: how often each token must occur in it; a token that occurs
    less often is written as often as it lacks. Control tokens are left out, and so are bytes that
    no UTF-8 text has.
    """
    rng = random.Random(f"rare tokens {seed}")
    control = {i for i, token in chat.tokenizer.get_added_tokens_decoder().items() if token.special}
    counts = np.bincount(ids, minlength=chat.vocab_size)
    wanted = [
        token
        for token in range(chat.vocab_size)
        if token not in control and _texts(chat, token)
        for _ in range(least - int(counts[token]))
    ]
    rng.shuffle(wanted)
    while wanted:
        chosen = [wanted.pop() for _ in range(min(len(wanted), rng.randint(*PIECES)))]
        text = ""
        for token in chosen:
            piece = rng.choice(_texts(chat, token))
            text += (rng.choice(MARKS) if text else "") + piece
        yield chat.encode(text)


@cache
def _texts(chat: Chat, token: int) -> tuple[str, ...]:
    """Texts whose tokens hold `token`: the token's own, or characters that have its byte."""
    text = chat.decode([token])
    if "\ufffd" not in text:
        return (text,) if token in chat.encode(text) else ()
    return tuple(c for c in _characters() if token in chat.encode(c))


@cache
def _characters() -> tuple[str, ...]:
    """Characters that have every byte of UTF-8 between them."""
    numbers = (*range(0x80, 0x800, 7), *range(0x800, 0xD800, 997), *range(0xE000, 0x110000, 4999))
    return tuple(map(chr, numbers))
