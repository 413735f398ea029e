"""Engines that read whole texts and compute sums, and applications around them."""

from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, processors

from pipeline.engines.base import Load
from pipeline.serving.app import create_app

WORDS = ["[CLS]", "[SEP]", "wire", "fee", "card"]


class _Encoder:
    max_input_len = max_seq_len = 6

    def load(self) -> Load:
        return Load(0, 0)

    def down(self) -> str | None:
        return None

    def close(self) -> None: ...


class Summing(_Encoder):
    """A vector of a text's ids: their number, their sum, and the last."""

    features = frozenset({"embeddings"})

    async def embed(self, prompts: Sequence[Sequence[int]]) -> list[list[float]]:
        if [4, 4, 4] in prompts:
            raise ValueError("4 thrice")
        return [[float(len(p)), float(sum(p)), float(p[-1])] for p in prompts]


class Weighing(_Encoder):
    """A score of a pair: the sum of the second text's ids, less that of the first's."""

    features = frozenset({"scores"})
    max_input_len = max_seq_len = 9

    async def score(
        self, texts: Sequence[Sequence[int]], types: Sequence[Sequence[int]]
    ) -> list[float]:
        return [
            float(sum(i if kind else -i for i, kind in zip(ids, kinds, strict=True)))
            for ids, kinds in zip(texts, types, strict=True)
        ]


def word_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="fee"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 0), ("[SEP]", 1)],
    )
    return tokenizer


def encoder_app(engine: Any, **given: Any) -> Any:
    given = {"model": "vectors", "slots": 1, "runtime": "list"} | given
    return create_app(engine, word_tokenizer(), **given)


def by_path(others: Any, **given: Any) -> Any:
    """An application that passes requests for embeddings and scores to models for these."""
    vectors, scores = encoder_app(Summing(), **given), encoder_app(Weighing(), **given)
    paths = {"/v1/embeddings": vectors, "/v1/score": scores, "/v1/rerank": scores}
    paths["/v1/ranking"] = scores

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await paths.get(scope["path"], others)(scope, receive, send)

    return app
