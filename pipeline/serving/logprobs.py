"""Log-probabilities in OpenAI's two forms, chat's and completions'."""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipeline.chat import Chat
from pipeline.serving.engine import Token
from pipeline.serving.guidance import tokens_of

if TYPE_CHECKING:
    from llguidance import LLTokenizer


class TokenTexts:
    """What each token of a model stands for. Ready before the first use by `ready`."""

    def __init__(self, chat: Chat) -> None:
        self._chat = chat
        self._tokens: LLTokenizer | None = None

    async def ready(self) -> "TokenTexts":
        """Read the vocabulary, off the event loop; at once from the second time on."""
        if self._tokens is None:
            self._tokens = await asyncio.to_thread(tokens_of, self._chat)
        return self

    def bytes_of(self, token: int) -> bytes:
        assert self._tokens
        return self._tokens.decode_bytes([token]) if token < self._tokens.vocab_size else b""

    def text_of(self, token: int) -> str:
        """A token's text; one that is a part of a character as OpenAI writes it, `bytes:\\xe2`."""
        found = self.bytes_of(token)
        try:
            return found.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in found)


def of_chat(tokens: Sequence[Token], texts: TokenTexts) -> dict[str, Any]:
    def entry(token: int, logprob: float | None) -> dict[str, Any]:
        found = list(texts.bytes_of(token))
        return {"token": texts.text_of(token), "logprob": logprob, "bytes": found}

    content = [
        {**entry(token.id, token.logprob), "top_logprobs": [entry(*other) for other in token.top]}
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def of_text(tokens: Sequence[Token], texts: TokenTexts, offset: int) -> dict[str, Any]:
    """`offset`: characters of the answer before these tokens.

    The chosen token is among `top_logprobs` whether likely or not, as in OpenAI's API. A prompt's
    first token has neither, since nothing is before it.
    """
    written = [texts.text_of(token.id) for token in tokens]
    tops, offsets = [], []
    for text, token in zip(written, tokens, strict=True):
        offsets.append(offset)
        offset += len(text)
        # Different tokens may have one text: the likeliest of them stays.
        top = {texts.text_of(i): value for i, value in reversed(token.top)}
        tops.append(None if token.logprob is None else {**top, text: token.logprob})
    return {
        "tokens": written,
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": tops,
        "text_offset": offsets,
    }
