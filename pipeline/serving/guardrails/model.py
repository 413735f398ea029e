"""Our engine as the model that rails ask: for judging a text, or for a step of a dialog."""

from collections.abc import AsyncIterator
from typing import Any

from pipeline.engines.base import Engine, Sampling
from pipeline.models.chat.renderer import Chat
from pipeline.serving.middleware import request_context
from pipeline.serving.openai.detokenizer import Detokenizer

MAX_TOKENS = 256  # of an answer to a rail that sets no limit


class EngineModel:
    """NeMo Guardrails' LLMModel (nemoguardrails.types) around an engine.

    It exists before the engine does, because configurations are checked first: see `bind`.
    """

    provider_name: str | None = "pipeline"
    provider_url: str | None = None

    def __init__(self, model_name: str) -> None:
        self.model_name = model_name
        self._engine: Engine | None = None
        self._chat: Chat | None = None

    def bind(self, engine: Engine, chat: Chat) -> None:
        """Give it the engine that it asks."""
        self._engine, self._chat = engine, chat

    async def generate_async(
        self, prompt: Any, *, stop: list[str] | None = None, **given: Any
    ) -> Any:
        """The model's answer to a prompt, which is a text or a list of ChatMessage.

        Raises:
            ValueError: the prompt is too long. EngineFailed, QueueFull: as the engine.
        """
        from nemoguardrails.types import LLMResponse, UsageInfo

        assert self._engine is not None
        assert self._chat is not None
        turns = [{"role": "user", "content": prompt}]
        if not isinstance(prompt, str):
            turns = [_turn(message) for message in prompt]
        ids = self._chat.prompt(turns)
        room = self._engine.max_seq_len - len(ids)
        if len(ids) > self._engine.max_input_len or room < 1:
            raise ValueError(
                f"the rail's prompt has {len(ids)} tokens, and the model takes "
                f"{self._engine.max_input_len}"
            )
        sampling = Sampling(
            max_tokens=min(given.get("max_tokens") or MAX_TOKENS, room),
            temperature=given.get("temperature") or 0.0,
            top_p=given.get("top_p") or 1.0,
            stop_ids=frozenset(self._chat.stop_ids),
            client=request_context.current().client,
        )
        detokenizer = Detokenizer(self._chat.tokenizer, stop or [])
        stream = self._engine.generate(ids, sampling)
        text, count, reason = "", 0, "length"
        try:
            async for tokens in stream:
                for token in tokens:
                    count += 1
                    if token.id in sampling.stop_ids:
                        reason = "stop"
                        break
                    text += detokenizer.push(token.id)
                if detokenizer.stopped or reason == "stop":
                    break
            text += detokenizer.finish()
        finally:
            stream.cancel()
        return LLMResponse(
            content=text,
            model=self.model_name,
            finish_reason="stop" if detokenizer.stopped else reason,  # type: ignore[arg-type]
            usage=UsageInfo(len(ids), count, len(ids) + count),
        )

    async def stream_async(
        self, prompt: Any, *, stop: list[str] | None = None, **given: Any
    ) -> AsyncIterator[Any]:
        """The same in one piece: what is streamed to clients does not come from here."""
        from nemoguardrails.types import LLMResponseChunk

        response = await self.generate_async(prompt, stop=stop, **given)
        yield LLMResponseChunk(delta_content=response.content, usage=response.usage)


def _turn(message: Any) -> dict[str, str]:
    """A turn as chat templates expect it, from a ChatMessage or a dict."""
    given = message if isinstance(message, dict) else message.to_dict()
    return {"role": given["role"], "content": given.get("content") or ""}
