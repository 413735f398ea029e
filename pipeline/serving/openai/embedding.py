"""POST /v1/embeddings: texts to token ids to vectors."""

import asyncio
import base64
import time
from typing import TYPE_CHECKING, Any

from pipeline.serving.metrics import Metrics
from pipeline.serving.middleware import request_log
from pipeline.serving.openai import responses
from pipeline.serving.openai.models import Models
from pipeline.serving.openai.protocol import EmbeddingRequest, Refusal, invalid

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class Embedder:
    """What the endpoint does.

    Args:
        engine: any; one of engine.EmbeddingEngine if its features say so.
        tokenizer: with the special tokens that the model's texts have; None for one that answers.
    """

    def __init__(
        self, engine: Any, tokenizer: "Tokenizer | None", models: Models, metrics: Metrics
    ) -> None:
        self._engine, self._tokenizer = engine, tokenizer
        self._models, self._metrics = models, metrics

    async def answer(self, body: EmbeddingRequest) -> dict[str, Any]:
        """
        Raises:
            Refusal: the model makes none, or an input is none that it can read.
        """
        self._models.find(body.model)
        if self._tokenizer is None:
            raise Refusal(
                400,
                f"the model {body.model!r} answers and makes no embeddings: ask a server of an "
                "embedding model",
                param="model",
                code="unsupported",
            )
        prompts = await asyncio.to_thread(self._prompts, body, self._tokenizer)
        tokens = sum(map(len, prompts))
        call = request_log.current()
        async with call.admitted(tokens):
            call.model, call.prompt_tokens = body.model, tokens
            self._metrics.prompt_tokens.inc(tokens)
            begin = time.perf_counter()
            vectors = await self._engine.embed(prompts)
        if body.dimensions is not None:
            vectors = _shortened(vectors, body.dimensions)
        if body.encoding_format == "base64":
            vectors = [_base64(vector) for vector in vectors]
        self._metrics.success.inc()
        self._metrics.latency.observe(time.perf_counter() - begin)
        return responses.embeddings(body.model, vectors, tokens)

    def _prompts(self, body: EmbeddingRequest, tokenizer: "Tokenizer") -> list[list[int]]:
        given: Any = body.input
        if isinstance(given, str) or isinstance(given[0], int):
            given = [given]
        if isinstance(given[0], str):
            if not all(given):
                raise invalid("input", "a text is empty")
            try:
                prompts = [encoding.ids for encoding in tokenizer.encode_batch(given)]
            except TypeError:  # as the library has it
                raise invalid("input", "a text holds half a surrogate pair") from None
        else:
            prompts = given
            highest = tokenizer.get_vocab_size() - 1
            if not all(0 <= token <= highest for prompt in prompts for token in prompt):
                raise invalid("input", f"token ids go from 0 to {highest}")
        longest = max(map(len, prompts))
        if longest > self._engine.max_input_len:
            raise invalid(
                "input",
                f"This model's maximum context length is {self._engine.max_input_len} tokens. "
                f"However, a text has {longest} tokens. Please shorten it.",
                "context_length_exceeded",
            )
        return prompts


def _shortened(vectors: list[list[float]], dimensions: int) -> list[list[float]]:
    """The first dimensions, brought to length 1 again, as OpenAI does it; for models that were
    trained to be cut (Matryoshka) that loses little.
    """
    import numpy as np

    if dimensions > len(vectors[0]):
        raise invalid("dimensions", f"this model's vectors have {len(vectors[0])} dimensions")
    cut = np.asarray(vectors, np.float64)[:, :dimensions]
    norms = np.linalg.norm(cut, axis=1, keepdims=True)
    return (cut / np.where(norms == 0, 1, norms)).tolist()


def _base64(vector: list[float]) -> str:
    """As OpenAI's clients read it: float32, little-endian."""
    import numpy as np

    return base64.b64encode(np.asarray(vector, "<f4").tobytes()).decode()
