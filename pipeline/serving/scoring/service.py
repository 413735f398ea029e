"""The routes of a model that scores texts: /v1/score, /v1/rerank and /v1/ranking."""

import asyncio
import math
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from fastapi import FastAPI
from tokenizers import Tokenizer

from pipeline.serving.metrics import Metrics
from pipeline.serving.middleware import request_context
from pipeline.serving.openai.errors import invalid
from pipeline.serving.openai.models import ServedModels
from pipeline.serving.openai.prompts import KEEP_ALL
from pipeline.serving.scoring.pairs import Cut, Pairs
from pipeline.serving.scoring.protocol import (
    MAX_TEXTS,
    RankingRequest,
    RerankRequest,
    ScoreRequest,
    TextPart,
)


class Scorer:
    """Scores pairs of texts.

    Args:
        engine: a ScoringEngine.
        activation: of the model: Sigmoid, or Identity for logits as they are.
    """

    def __init__(
        self,
        engine: Any,
        tokenizer: Tokenizer,
        models: ServedModels,
        metrics: Metrics,
        activation: str,
    ) -> None:
        self._engine, self._models, self._metrics = engine, models, metrics
        self._pairs = Pairs(tokenizer, engine.max_input_len)
        self._activation: Callable[[float], float] = (
            _sigmoid if activation == "Sigmoid" else lambda logit: logit
        )

    async def score(self, body: ScoreRequest) -> dict[str, Any]:
        """
        Raises:
            ApiError: a text is not valid, or the lists have different lengths.
        """
        firsts, seconds = _texts(body.text_1, "text_1"), _texts(body.text_2, "text_2")
        if len(firsts) == 1:
            firsts = firsts * len(seconds)
        elif len(firsts) != len(seconds):
            raise invalid(
                "text_2",
                f"text_1 has {len(firsts)} texts and text_2 has {len(seconds)}: give as many, or "
                "one text_1",
            )
        cut = Cut(body.truncate_prompt_tokens)
        logits, head = await self._logits(body.model, firsts, seconds, cut, ("text_1", "text_2"))
        data = [
            {"index": index, "object": "score", "score": score}
            for index, score in enumerate(self._activated(logits, body.use_activation))
        ]
        return {**head("score"), "object": "list", "created": int(time.time()), "data": data}

    async def rerank(self, body: RerankRequest) -> dict[str, Any]:
        """
        Raises:
            ApiError: a text is not valid.
        """
        texts = [part.text if isinstance(part, TextPart) else part for part in body.documents]
        pair = body.truncate_prompt_tokens
        if pair is None and body.max_tokens_per_doc is not None:
            pair = KEEP_ALL
        cut = Cut(pair, body.max_tokens_per_doc)
        logits, head = await self._logits(
            body.model, [body.query] * len(texts), texts, cut, ("query", "documents")
        )
        scores = self._activated(logits, body.use_activation)
        results = [
            {"index": i, "relevance_score": scores[i]}
            | ({"document": {"text": texts[i]}} if body.return_documents else {})
            for i in _best_first(logits)
        ]
        return {**head("rerank"), "results": results[: body.top_n or None]}

    async def rank(self, body: RankingRequest) -> dict[str, Any]:
        """
        Raises:
            ApiError: a text is not valid.
        """
        texts = [passage.text for passage in body.passages]
        cut = Cut(KEEP_ALL, second_alone=True) if body.truncate == "END" else Cut()
        logits, head = await self._logits(
            body.model, [body.query.text] * len(texts), texts, cut, ("query", "passages")
        )
        rankings = [{"index": i, "logit": logits[i]} for i in _best_first(logits)]
        return {"rankings": rankings, "usage": head("ranking")["usage"]}

    def _activated(self, logits: list[float], wanted: bool) -> list[float]:
        return [self._activation(logit) for logit in logits] if wanted else logits

    async def _logits(
        self,
        name: str | None,
        firsts: list[str],
        seconds: list[str],
        cut: Cut,
        fields: tuple[str, str],
    ) -> tuple[list[float], Callable[[str], dict[str, Any]]]:
        """The logit of each pair, and what makes the response's id, model and usage."""
        self._models.find(name)
        model = self._models.name_of(name)
        rows = await asyncio.to_thread(self._pairs.rows, firsts, seconds, cut, fields)
        tokens = sum(map(len, rows.ids))
        context = request_context.current()
        async with context.charged(tokens):
            context.model, context.prompt_tokens = model, tokens
            self._metrics.prompt_tokens.inc(tokens)
            begin = time.perf_counter()
            logits = await self._engine.score(rows.ids, rows.types)
        self._metrics.success.inc()
        self._metrics.latency.observe(time.perf_counter() - begin)
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return logits, lambda kind: {
            "id": f"{kind}-{uuid.uuid4().hex}",
            "model": model,
            "usage": usage,
        }


def add_scoring(app: FastAPI, scorer: Scorer) -> None:
    """Add the routes."""

    @app.post("/score")
    @app.post("/v1/score")
    async def score(body: ScoreRequest) -> dict[str, Any]:
        return await scorer.score(body)

    @app.post("/rerank")
    @app.post("/v1/rerank")
    @app.post("/v2/rerank")
    async def rerank(body: RerankRequest) -> dict[str, Any]:
        return await scorer.rerank(body)

    @app.post("/v1/ranking")
    async def ranking(body: RankingRequest) -> dict[str, Any]:
        return await scorer.rank(body)


def _texts(given: str | list[str], field: str) -> list[str]:
    texts = [given] if isinstance(given, str) else given
    if not 1 <= len(texts) <= MAX_TEXTS:
        raise invalid(field, f"give from 1 to {MAX_TEXTS} texts")
    return texts


def _best_first(logits: Sequence[float]) -> list[int]:
    """Indices, the highest logit first; equal ones keep their order."""
    return sorted(range(len(logits)), key=lambda i: -logits[i])


def _sigmoid(logit: float) -> float:
    if logit >= 0:
        return 1 / (1 + math.exp(-logit))
    return math.exp(logit) / (1 + math.exp(logit))
