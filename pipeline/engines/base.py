"""The interface of an engine: token ids in, token ids out, cancellable.

An engine knows nothing about text, HTTP or OpenAI. BatchingEngine (batching/scheduler.py) is an
engine around a model that runs token by token; runtimes that batch by themselves only need this
protocol.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, Protocol


@dataclass(frozen=True)
class Guide:
    """What an answer must match. text: the JSON schema, the pattern or the grammar.

    kind: `grammar` is in Lark or GBNF notation; engines get `lark`.
    """

    kind: Literal["json_object", "json_schema", "regex", "lark", "grammar"]
    text: str


class Client(NamedTuple):
    """Who sent a request: requests of different clients take turns.

    name: of the API key, or the client's address. connection: one of the client's connections.
    weight: a client of weight 2 gets twice the running answers of one of weight 1.
    priority: requests that wait with a higher one go first.
    """

    name: str
    connection: str
    weight: float = 1.0
    priority: int = 0


NOBODY = Client("", "")  # the server itself


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen, when an answer ends, and whose request it is.

    max_tokens: tokens of the answer at most.
    temperature: 0 takes the likeliest token. top_p: 1 keeps all. top_k: 0 keeps all.
    seed: the same seed gives the same answer; None a random one.
    stop_ids: tokens that end the answer; the one that ends it is returned as its last token.
    frequency_penalty, presence_penalty, repetition_penalty, min_p, logit_bias: as in vLLM.
    min_tokens: tokens of the answer before one of stop_ids may come.
    allowed_ids: the only tokens that an answer may have; None for all.
    bad_words: sequences of tokens that an answer must not have.
    logprobs: return those of the chosen token and of this many most likely ones; None for none.
    prompt_logprobs: the same for the prompt's tokens. adapter: name of the LoRA adapter to use.
    cache_salt: a request may use what the engine kept of an earlier one only with the same salt.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop_ids: frozenset[int] = frozenset()
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    min_p: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    min_tokens: int = 0
    allowed_ids: frozenset[int] | None = None
    bad_words: tuple[tuple[int, ...], ...] = ()
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    cache_salt: str | None = None
    guide: Guide | None = None
    adapter: str | None = None
    client: Client = NOBODY


class Token(NamedTuple):
    """A token, and if asked for its log-probability and (id, log-probability) of the top ones.

    rank: its place among all tokens by log-probability; 1 is the likeliest.
    """

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    rank: int | None = None


class Load(NamedTuple):
    """Sequences that are running, and those that wait for a slot.

    cache_use: share of the KV cache that is in use, 0 to 1; None if the runtime does not report it.
    """

    running: int
    waiting: int
    cache_use: float | None = None


class TokenStream(Protocol):
    """The tokens of one answer as they are generated: one or more new ones at each step.

    Iterating raises EngineFailed if the engine fails, ValueError if the engine finds out only now
    that it cannot serve the request, and QueueFull if it has no free place after all.
    prompt_logprobs: the prompt's tokens with their log-probabilities, if they were asked for; set
    before the first token.
    """

    @property
    def prompt_logprobs(self) -> list[Token] | None: ...

    def __aiter__(self) -> "TokenStream": ...

    async def __anext__(self) -> list[Token]: ...

    def cancel(self) -> None:
        """Free the slot; no effect once the answer has ended."""


class Engine(Protocol):
    """max_input_len: tokens of a prompt. max_seq_len: tokens of prompt and answer together.

    features: what it can do beyond sampling: logprobs, prompt_logprobs, guide, logit_bias,
        penalties, min_tokens, allowed_token_ids, bad_words, cache_salt; turns (it orders requests
        by Client); adapters (an AdapterEngine), embeddings (an EmbeddingEngine),
        scores (a ScoringEngine).
    room: requests that it can hold at once, including those that wait; only if the engine knows it.
    vocab_size: rows of the model's embedding; only if the engine knows it.
    lacks: fields of Sampling that it refuses; only if there are any.
    """

    max_input_len: int
    max_seq_len: int
    features: frozenset[str]

    def generate(self, prompt: Sequence[int], sampling: Sampling) -> TokenStream:
        """Start an answer; call it in the event loop that reads the stream.

        Raises:
            QueueFull: the queue is full. EngineFailed: the engine is down.
        """

    def down(self) -> str | None:
        """Why the engine cannot answer now; None if it can."""

    def load(self) -> Load: ...

    def close(self) -> None:
        """End every answer with EngineFailed and release the model."""


class AdapterEngine(Engine, Protocol):
    """LoRA adapters, served as models of their own, added and removed while the engine runs."""

    def adapters(self) -> Sequence[str]:
        """Names of the loaded adapters."""

    async def add_adapter(self, name: str, folder: Path) -> None:
        """Load an adapter in the PEFT library's format.

        Raises:
            ValueError: it is not one, or not of this model's shape.
        """

    async def remove_adapter(self, name: str) -> None:
        """Unload an adapter; answers in progress that use it are finished."""


class EmbeddingEngine(Engine, Protocol):
    """Computes embeddings; generate is not supported."""

    async def embed(self, prompts: Sequence[Sequence[int]]) -> list[list[float]]:
        """One vector for each text, given as token ids."""


class ScoringEngine(Engine, Protocol):
    """Scores how well texts fit together; generate is not supported."""

    async def score(
        self, texts: Sequence[Sequence[int]], types: Sequence[Sequence[int]]
    ) -> list[float]:
        """The logit of each row of token ids. types: which of the two texts each token is of."""


class QueueFull(Exception):
    """The engine's queue of waiting requests is full."""


class EngineFailed(Exception):
    """The engine failed before the answer was complete."""


def require_known_tokens(prompt: Sequence[int], sampling: Sampling, vocab_size: int) -> None:
    """
    Raises:
        ValueError: a token of the prompt or of the sampling is not in the model's vocabulary.
    """
    for place, ids in (
        ("the prompt", prompt),
        ("logit_bias", sampling.logit_bias),
        ("allowed_token_ids", sampling.allowed_ids),
    ):
        if ids and not 0 <= min(ids) <= max(ids) < vocab_size:
            odd = next(token for token in ids if not 0 <= token < vocab_size)
            raise ValueError(
                f"{place} has the token {odd}, and the model's vocabulary ends at {vocab_size - 1}"
            )
