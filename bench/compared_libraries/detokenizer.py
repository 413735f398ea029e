"""tokenizers' DecodeStream for the text of an answer, token by token.

As it comes, in our Detokenizer, and beside what Detokenizer did before.

Each is compared with what the tokenizer makes of all the tokens at once, for the three kinds of
decoder that published models have: byte-level BPE (Llama 3, Qwen, the bundled model), SentencePiece
with byte fallback (Llama 2, Mistral, Gemma), and Metaspace.
"""

import json
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

from tokenizers import Tokenizer, decoders, models
from tokenizers.decoders import DecodeStream

from bench.compared_libraries.code_lines import code_lines
from bench.compared_libraries.timing import seconds_of
from bench.origin import ROOT
from pipeline.models.chat.renderer import Chat
from pipeline.serving.openai.detokenizer import INCOMPLETE, Detokenizer

SEQUENCES, LONGEST, SEED = 3000, 40, 1
TEXT_TOKENS = 20_000
HELD = 4000  # tokens in a row that complete no character, as logit_bias makes a model write them
OTHER_TEXTS = [
    "Grüße aus Köln",
    "naïve café",
    "你好,世界",
    "🙂👍🏽 family 👨‍👩‍👧",
    "Привет",
    "שלום",
]


class Stream(Protocol):
    def push(self, token: int) -> str: ...

    def finish(self) -> str: ...


class Plain:
    """The library as it comes."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self._stream = tokenizer, DecodeStream(skip_special_tokens=True)

    def push(self, token: int) -> str:
        return self._stream.step(self._tokenizer, token) or ""

    def finish(self) -> str:
        return ""


class Own:
    """What Detokenizer did before: the text of the last tokens with and without the newest one."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self._ids = tokenizer, list[int]()
        self._start = self._shown = 0

    def push(self, token: int) -> str:
        self._ids.append(token)
        before = self._decode(self._ids[self._start : self._shown])
        text = self._decode(self._ids[self._start :])
        if text.endswith(INCOMPLETE) or len(text) < len(before):
            return ""
        self._start, self._shown = self._shown, len(self._ids)
        return text[len(before) :]

    def finish(self) -> str:
        before = self._decode(self._ids[self._start : self._shown])
        return self._decode(self._ids[self._start :])[len(before) :]

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))


WAYS: dict[str, Callable[[Tokenizer], Stream]] = {
    "ours, as it was": Own,
    "DecodeStream as it comes": Plain,
    "ours, on DecodeStream": Detokenizer,
}


def measure() -> dict[str, Any]:
    bundled = Chat.load(ROOT / "data/base_model").tokenizer
    sequences = {
        "byte-level": (bundled, of_any(bundled)),
        "byte fallback, whole characters": (byte_fallback(), of_characters(byte_fallback())),
        "byte fallback, any bytes": (byte_fallback(), of_any(byte_fallback())),
        "Metaspace": (metaspace(), of_any(metaspace())),
    }
    texts = [*answers(), *OTHER_TEXTS]
    return {
        "random_ids": {
            name: {way: outcomes(tokenizer, make, ids) for way, make in WAYS.items()}
            for name, (tokenizer, ids) in sequences.items()
        },
        "texts_that_come_out_as_they_were": {
            way: sum(read(bundled, make, encode(bundled, text)) == text for text in texts)
            for way, make in WAYS.items()
        },
        "texts": len(texts),
        "microseconds_per_token": {
            way: round(1e6 * seconds, 2) for way, seconds in speeds(bundled, texts).items()
        },
        f"seconds_of_{HELD}_tokens_in_a_row": {
            kind: {way: round(held(bundled, make, token), 2) for way, make in WAYS.items()}
            for kind, token in {
                "half a character": byte_token(bundled),
                "control token": bundled.token_to_id("<|end|>"),
            }.items()
        },
        # Stop strings, which the library knows nothing of, are not counted.
        "lines_of_code": {
            "ours, as it was": code_lines(Own),
            "DecodeStream as it comes": code_lines(Plain),
            "ours, on DecodeStream": code_lines(Detokenizer) - code_lines(Detokenizer._release),
        },
    }


def of_any(tokenizer: Tokenizer) -> list[list[int]]:
    """Random tokens, control tokens and unknown ones among them."""
    draw, size = random.Random(SEED), tokenizer.get_vocab_size() + 3
    return [
        [draw.randrange(size) for _ in range(draw.randrange(LONGEST))] for _ in range(SEQUENCES)
    ]


def of_characters(tokenizer: Tokenizer) -> list[list[int]]:
    """Random words, control tokens, and characters in bytes."""
    draw = random.Random(SEED)
    words = [i for name, i in tokenizer.get_vocab().items() if not name.startswith("<0x")]
    characters = [
        [tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in character.encode()]
        for character in "é€🙂世"
    ]
    units = [*([word] for word in words), *characters]
    return [
        [token for _ in range(draw.randrange(LONGEST)) for token in draw.choice(units)]
        for _ in range(SEQUENCES)
    ]


def outcomes(
    tokenizer: Tokenizer, make: Callable[[Tokenizer], Stream], sequences: Sequence[Sequence[int]]
) -> dict[str, int]:
    """How many of the sequences give which result."""
    found = Counter[str]()
    for ids in sequences:
        whole = tokenizer.decode(ids, skip_special_tokens=True)
        try:
            text = read(tokenizer, make, ids)
        except Exception:
            found["raises"] += 1
            continue
        if text == whole:
            found["same text"] += 1
        elif whole.startswith(text) and not whole[len(text) :].strip(INCOMPLETE):
            found["the end is missing"] += 1
        else:
            found["another text"] += 1
    return dict(sorted(found.items()))


def read(tokenizer: Tokenizer, make: Callable[[Tokenizer], Stream], ids: Sequence[int]) -> str:
    stream = make(tokenizer)
    return "".join([*(stream.push(token) for token in ids), stream.finish()])


def speeds(tokenizer: Tokenizer, texts: Sequence[str]) -> dict[str, float]:
    """Seconds a token."""
    sequences: list[list[int]] = []
    while sum(map(len, sequences)) < TEXT_TOKENS:
        sequences += [encode(tokenizer, text) for text in texts]
    tokens = sum(map(len, sequences))

    def all_of_them(make: Callable[[Tokenizer], Stream]) -> None:
        for ids in sequences:
            read(tokenizer, make, ids)

    found = seconds_of({way: partial(all_of_them, make) for way, make in WAYS.items()})
    return {way: seconds / tokens for way, seconds in found.items()}


def held(tokenizer: Tokenizer, make: Callable[[Tokenizer], Stream], token: int) -> float:
    begin = time.perf_counter()
    read(tokenizer, make, [token] * HELD)
    return time.perf_counter() - begin


def answers() -> list[str]:
    """The assistant's turns of the bundled test split."""
    lines = (ROOT / "data/bank/test.jsonl").read_text().splitlines()
    turns = [turn for line in lines for turn in json.loads(line)["messages"]]
    return [turn["content"] for turn in turns if turn["role"] == "assistant"]


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


def byte_token(tokenizer: Tokenizer) -> int:
    """A token that is no character by itself."""
    return next(i for i in range(tokenizer.get_vocab_size()) if tokenizer.decode([i]) == INCOMPLETE)


def byte_fallback() -> Tokenizer:
    """Llama 2's decoder over all bytes and a few words."""
    words = ["▁", "▁He", "llo", "▁wor", "ld", "▁a", "b", "c", "!", "é"]
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    vocab = {name: i for i, name in enumerate(names)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True, unk_token="<unk>"))
    spaces, strip = decoders.Replace("▁", " "), decoders.Strip(" ", 1, 0)
    tokenizer.decoder = decoders.Sequence([spaces, decoders.ByteFallback(), decoders.Fuse(), strip])
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return tokenizer


def metaspace() -> Tokenizer:
    names = ["<unk>", "<s>", "▁He", "llo", "▁", "▁wor", "ld", "a", "▁a"]
    vocab = {name: i for i, name in enumerate(names)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["<s>"])
    return tokenizer
