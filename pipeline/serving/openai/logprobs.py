"""Log-probabilities in OpenAI's formats of chat and of completions."""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipeline.engines.base import Token
from pipeline.engines.batching.guided_decoding import tokens_of
from pipeline.models.chat.renderer import Chat
from pipeline.serving.openai.detokenizer import Detokenizer

if TYPE_CHECKING:
    from llguidance import LLTokenizer


class TokenTexts:
    """The bytes and text of each token of a model. Await `ready` before the first use."""

    def __init__(self, chat: Chat) -> None:
        self.chat = chat
        self._tokens: LLTokenizer | None = None

    async def ready(self) -> "TokenTexts":
        """Read the vocabulary in a thread, the first time only."""
        if self._tokens is None:
            self._tokens = await asyncio.to_thread(tokens_of, self.chat)
        return self

    def bytes_of(self, token: int) -> bytes:
        assert self._tokens
        return self._tokens.decode_bytes([token]) if token < self._tokens.vocab_size else b""

    def text_of(self, token: int) -> str:
        """A token's text. A part of a character is written as OpenAI does: `bytes:\\xe2`."""
        found = self.bytes_of(token)
        try:
            return found.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in found)


class TokenIdTexts(TokenTexts):
    """Each token's text is its id, as in `token_id:5`, so that every token can be told apart."""

    def __init__(self, texts: TokenTexts) -> None:
        self.chat, self._tokens = texts.chat, texts._tokens

    def text_of(self, token: int) -> str:
        return f"token_id:{token}"


class Offsets:
    """Where each token of a completion begins in its text, in characters.

    The text has no control tokens and no BOS that the server added. If several tokens make up one
    character, each of them begins where the character does.

    Args:
        echo: the prompt as the text shows it; empty for none.
        prompt_tokens: number of tokens in the prompt.
    """

    def __init__(self, chat: Chat, echo: str, prompt_tokens: int) -> None:
        added = chat.tokenizer.get_added_tokens_decoder()
        self._control = {i for i, token in added.items() if token.special}
        self._prompt = Detokenizer(chat.tokenizer, control_tokens=True)
        self._completion = Detokenizer(chat.tokenizer)
        self._echo, self._prompt_left = echo, prompt_tokens if echo else 0
        self._at = 0

    def advance(self, tokens: Sequence[Token]) -> list[int]:
        """The offsets of the next tokens."""
        offsets = []
        for token in tokens:
            offsets.append(self._at)
            if self._prompt_left:
                self._prompt_left -= 1
                self._pass_prompt(token.id)
            else:
                self._at += len(self._completion.push(token.id))
        return offsets

    def _pass_prompt(self, token: int) -> None:
        written = self._prompt.push(token)
        # Some tokenizers add a space before the text.
        found = [w for w in (written, written.lstrip(" ")) if self._echo.startswith(w, self._at)]
        if found or token not in self._control:
            self._at = min(self._at + len(found[0] if found else written), len(self._echo))
        if not self._prompt_left:
            self._at = len(self._echo)


def for_chat(tokens: Sequence[Token], texts: TokenTexts) -> dict[str, Any]:
    """The `logprobs` of a chat choice."""

    def entry(token: int, logprob: float | None) -> dict[str, Any]:
        found = list(texts.bytes_of(token))
        return {"token": texts.text_of(token), "logprob": logprob, "bytes": found}

    content = [
        {**entry(token.id, token.logprob), "top_logprobs": [entry(*other) for other in token.top]}
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def for_completions(
    tokens: Sequence[Token], texts: TokenTexts, offsets: Sequence[int]
) -> dict[str, Any]:
    """The `logprobs` of a completions choice.

    The chosen token is always among `top_logprobs`, as in OpenAI's API. The prompt's first token
    has no log-probability, because nothing comes before it.

    Args:
        offsets: where each of these tokens begins in the text, in characters.
    """
    written = [texts.text_of(token.id) for token in tokens]
    num_logprobs = []
    for text, token in zip(written, tokens, strict=True):
        # Several tokens may have the same text: the likeliest of them is kept.
        top = {texts.text_of(i): value for i, value in reversed(token.top)}
        num_logprobs.append(None if token.logprob is None else {**top, text: token.logprob})
    return {
        "tokens": written,
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": num_logprobs,
        "text_offset": list(offsets),
    }


def for_prompt(
    tokens: Sequence[Token], texts: TokenTexts, count: int
) -> list[dict[str, Any] | None]:
    """vLLM's prompt_logprobs: for each token the likeliest ones and itself, by their ids.

    Args:
        count: of the likeliest ones.
    """
    found: list[dict[str, Any] | None] = []
    for token in tokens:
        if token.logprob is None:
            found.append(None)
            continue
        here = {i: (value, rank) for rank, (i, value) in enumerate(token.top[:count], 1)}
        here[token.id] = token.logprob, token.rank or here.get(token.id, (0, 0))[1]
        found.append(
            {
                str(i): {"logprob": value, "rank": rank, "decoded_token": texts.text_of(i)}
                for i, (value, rank) in here.items()
            }
        )
    return found
