"""Log-probabilities in OpenAI's two forms, chat's and completions'."""

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from pipeline.engines.base import Token
from pipeline.engines.batching.guided_decoding import tokens_of
from pipeline.models.chat.renderer import Chat
from pipeline.serving.openai.detokenizer import TextStream

if TYPE_CHECKING:
    from llguidance import LLTokenizer


class TokenTexts:
    """What each token of a model stands for. Ready before the first use by `ready`."""

    def __init__(self, chat: Chat) -> None:
        self.chat = chat
        self._tokens: LLTokenizer | None = None

    async def ready(self) -> "TokenTexts":
        """Read the vocabulary, off the event loop; at once from the second time on."""
        if self._tokens is None:
            self._tokens = await asyncio.to_thread(tokens_of, self.chat)
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


class Offsets:
    """Where the tokens of a completion begin in its text, in characters.

    The text holds neither the answer's control tokens nor a BOS that the server added, and a
    character that several tokens make up once: each of them begins where it does.

    Args:
        echo: the prompt as the text shows it, or nothing. prompt_tokens: how many tokens that is.
    """

    def __init__(self, chat: Chat, echo: str, prompt_tokens: int) -> None:
        added = chat.tokenizer.get_added_tokens_decoder()
        self._control = {i for i, token in added.items() if token.special}
        self._prompt = TextStream(partial(chat.decode, control_tokens=True))
        self._answer = TextStream(chat.decode)
        self._echo, self._left = echo, prompt_tokens if echo else 0
        self._at = 0

    def of(self, tokens: Sequence[Token]) -> list[int]:
        """Of the tokens that come next."""
        offsets = []
        for token in tokens:
            offsets.append(self._at)
            if self._left:
                self._left -= 1
                self._pass_prompt(token.id)
            else:
                self._at += len(self._answer.push(token.id))
        return offsets

    def _pass_prompt(self, token: int) -> None:
        written = self._prompt.push(token)
        # Some tokenizers put a space before all text.
        found = [w for w in (written, written.lstrip(" ")) if self._echo.startswith(w, self._at)]
        if found or token not in self._control:
            self._at = min(self._at + len(found[0] if found else written), len(self._echo))
        if not self._left:
            self._at = len(self._echo)


def of_chat(tokens: Sequence[Token], texts: TokenTexts) -> dict[str, Any]:
    def entry(token: int, logprob: float | None) -> dict[str, Any]:
        found = list(texts.bytes_of(token))
        return {"token": texts.text_of(token), "logprob": logprob, "bytes": found}

    content = [
        {**entry(token.id, token.logprob), "top_logprobs": [entry(*other) for other in token.top]}
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def of_text(tokens: Sequence[Token], texts: TokenTexts, offsets: Sequence[int]) -> dict[str, Any]:
    """`offsets`: where each of these tokens begins in the text.

    The chosen token is among `top_logprobs` whether likely or not, as in OpenAI's API. A prompt's
    first token has neither, since nothing is before it.
    """
    written = [texts.text_of(token.id) for token in tokens]
    tops = []
    for text, token in zip(written, tokens, strict=True):
        # Different tokens may have one text: the likeliest of them stays.
        top = {texts.text_of(i): value for i, value in reversed(token.top)}
        tops.append(None if token.logprob is None else {**top, text: token.logprob})
    return {
        "tokens": written,
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": tops,
        "text_offset": list(offsets),
    }
