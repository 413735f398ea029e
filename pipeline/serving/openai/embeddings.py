"""POST /v1/embeddings: texts become token ids, and token ids become vectors."""

import asyncio
import base64
import time
from typing import TYPE_CHECKING, Any

from pipeline.serving.metrics import Metrics
from pipeline.serving.middleware import request_context
from pipeline.serving.openai import responses
from pipeline.serving.openai.errors import invalid
from pipeline.serving.openai.models import ServedModels
from pipeline.serving.openai.prompt_types import NO_PROMPTS, are_token_ids
from pipeline.serving.openai.prompts import cannot_fit, max_length
from pipeline.serving.openai.protocol import EmbeddingRequest

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class Embedder:
    """The endpoint.

    Args:
        engine: an EmbeddingEngine.
        tokenizer: adds the special tokens of the model's inputs.
    """

    def __init__(
        self, engine: Any, tokenizer: "Tokenizer", models: ServedModels, metrics: Metrics
    ) -> None:
        self._engine, self._tokenizer = engine, tokenizer
        self._models, self._metrics = models, metrics
        self._max_length = max_length(tokenizer, engine.max_input_len)

    async def embed(self, body: EmbeddingRequest) -> dict[str, Any]:
        """
        Raises:
            ApiError: an input is not valid for the model.
        """
        self._models.find(body.model)
        model = self._models.name_of(body.model)
        prompts = await asyncio.to_thread(self._prompts, body, self._tokenizer)
        tokens = sum(map(len, prompts))
        context = request_context.current()
        async with context.charged(tokens):
            context.model, context.prompt_tokens = model, tokens
            self._metrics.prompt_tokens.inc(tokens)
            begin = time.perf_counter()
            try:
                vectors = await self._engine.embed(prompts)
            except ValueError as error:
                raise invalid("input", str(error)) from error
        if body.dimensions is not None:
            vectors = _shortened(vectors, body.dimensions)
        if body.encoding_format == "base64":
            vectors = [_base64(vector) for vector in vectors]
        self._metrics.success.inc()
        self._metrics.latency.observe(time.perf_counter() - begin)
        return responses.embeddings(model, vectors, tokens)

    def _prompts(self, body: EmbeddingRequest, tokenizer: "Tokenizer") -> list[list[int]]:
        given: Any = body.input
        if isinstance(given, str) or isinstance(given[0], int):
            given = [given]
        if isinstance(given[0], str):
            if not all(given):
                raise invalid("input", "a text is empty: leave it out")
            if any(cannot_fit(text, self._max_length) for text in given):
                longest = max(map(len, given))
                raise invalid(
                    "input",
                    f"This model's maximum context length is {self._engine.max_input_len} tokens. "
                    f"However, a text has {longest} characters. Please shorten it.",
                    "context_length_exceeded",
                )
            try:
                prompts = [encoding.ids for encoding in tokenizer.encode_batch(given)]
            except TypeError:  # tokenizers' error for text that UTF-8 cannot encode
                raise invalid("input", "a text has half a surrogate pair: send UTF-8") from None
        elif not all(map(are_token_ids, given)):
            raise invalid("input", NO_PROMPTS)
        else:
            prompts = given
            highest = tokenizer.get_vocab_size() - 1
            if not all(0 <= token <= highest for prompt in prompts for token in prompt):
                raise invalid("input", f"token ids must be from 0 to {highest}")
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
    """The first dimensions, scaled to length 1 again, as OpenAI does.

    Models trained for it (Matryoshka) lose little quality by that.
    """
    import numpy as np

    if dimensions > len(vectors[0]):
        raise invalid("dimensions", f"this model's vectors have only {len(vectors[0])} dimensions")
    cut = np.asarray(vectors, np.float64)[:, :dimensions]
    norms = np.linalg.norm(cut, axis=1, keepdims=True)
    return (cut / np.where(norms == 0, 1, norms)).tolist()


def _base64(vector: list[float]) -> str:
    """The encoding that OpenAI's clients expect: little-endian float32."""
    import numpy as np

    return base64.b64encode(np.asarray(vector, "<f4").tobytes()).decode()
