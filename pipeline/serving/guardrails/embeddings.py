"""Embeddings for dialogs without a model and without a download: parts of words, counted.

A configuration that names no embedding model gets these. They compare how texts are written, not
what they mean, so a dialog needs examples in the users' own words.
"""

import math
import re
import zlib
from collections import Counter
from collections.abc import Iterator

from pipeline.core.errors import ConfigError

ENGINE = "lexical"
DIMENSIONS = 2048
PART = 3  # letters


class LexicalEmbeddings:
    """NeMo Guardrails' EmbeddingModel (nemoguardrails.embeddings.providers)."""

    engine_name = ENGINE

    def __init__(self, embedding_model: str | None = None, **given: object) -> None:
        if given:
            raise ConfigError(
                f"the embedding engine {ENGINE} has no parameters: {', '.join(given)}"
            )

    async def encode_async(self, documents: list[str]) -> list[list[float]]:
        return self.encode(documents)

    def encode(self, documents: list[str]) -> list[list[float]]:
        return [_embed(document) for document in documents]


def _embed(text: str) -> list[float]:
    vector = [0.0] * DIMENSIONS
    for feature, count in Counter(_features(text)).items():
        # Not hash(): it differs from process to process.
        vector[zlib.crc32(feature.encode()) % DIMENSIONS] += math.sqrt(count)
    norm = math.sqrt(sum(value * value for value in vector)) or 1.0
    return [value / norm for value in vector]


def _features(text: str) -> Iterator[str]:
    for word in re.findall(r"\w+", text.lower()):
        yield f"={word}"
        padded = f" {word} "
        yield from (padded[i : i + PART] for i in range(len(padded) - PART + 1))
