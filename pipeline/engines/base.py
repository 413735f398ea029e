"""What the server asks of an engine: token ids in, token ids out, cancellable.

An engine knows nothing of text, of HTTP or of OpenAI. BatchingEngine (batching.py) is one around a
model that is stepped token by token; runtimes that batch by themselves need only this protocol.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, Protocol


@dataclass(frozen=True)
class Guide:
    """What an answer must match; text: the schema (JSON), the pattern, the grammar."""

    kind: Literal["json_object", "json_schema", "regex", "lark"]
    text: str


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen, and when an answer ends.

    max_tokens: tokens of the answer at most.
    temperature: 0 takes the likeliest token. top_p: 1 keeps all. top_k: 0 keeps all.
    seed: the same seed gives the same answer; None a random one.
    stop_ids: tokens that end the answer; the one that does is given out as its last.
    frequency_penalty, presence_penalty, repetition_penalty, min_p, logit_bias: as vLLM has them.
    logprobs: of the chosen token, and so many likeliest; None for none.
    prompt_logprobs: the same of the prompt's tokens. adapter: name of the one to answer with.
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
    logprobs: int | None = None
    prompt_logprobs: bool = False
    guide: Guide | None = None
    adapter: str | None = None


class Token(NamedTuple):
    """A token; if asked for, its log-probability, and (id, log-probability) of the likeliest."""

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Load(NamedTuple):
    """Sequences being answered, and those that wait for a slot.

    cache_use: share of the KV cache that holds tokens, 0 to 1; None if the runtime does not say.
    """

    running: int
    waiting: int
    cache_use: float | None = None


class TokenStream(Protocol):
    """The tokens of one answer as they come: each time those that are new, one or more.

    Iterating raises EngineFailed if the engine breaks down, ValueError if it finds only now that it
    cannot do what was asked, and QueueFull if it has no room after all.
    prompt_logprobs: the prompt's tokens with theirs, where asked for, before the first token.
    """

    @property
    def prompt_logprobs(self) -> list[Token] | None: ...

    def __aiter__(self) -> "TokenStream": ...

    async def __anext__(self) -> list[Token]: ...

    def cancel(self) -> None:
        """Free the slot; without effect once the answer has ended."""


class Engine(Protocol):
    """max_input_len, max_seq_len: tokens of a prompt, and of prompt and answer together.

    features: what it can do beyond sampling: logprobs, prompt_logprobs, guide, logit_bias,
        penalties; adapters (an AdapterEngine), embeddings (an EmbeddingEngine).
    room: answers that it can hold at once, those that wait among them; only of one that knows.
    lacks: only of an engine that cannot do all of Sampling: names of what it refuses.
    """

    max_input_len: int
    max_seq_len: int
    features: frozenset[str]

    def generate(self, prompt: Sequence[int], sampling: Sampling) -> TokenStream:
        """Begin an answer; called in the event loop that will read it.

        Raises:
            QueueFull: as many requests wait as may. EngineFailed: the engine is down.
        """

    def down(self) -> str | None:
        """Why no answer can come now; None if one can."""

    def load(self) -> Load: ...

    def close(self) -> None:
        """End every answer with EngineFailed and let go of the model."""


class AdapterEngine(Engine, Protocol):
    """LoRA adapters as models of their own, added and removed while running."""

    def adapters(self) -> Sequence[str]:
        """Names of those that are loaded."""

    async def add_adapter(self, name: str, folder: Path) -> None:
        """Load one in the PEFT library's form.

        Raises:
            ValueError: it is not one, or not of this model's shape.
        """

    async def remove_adapter(self, name: str) -> None:
        """Let go of one; answers in progress with it are finished."""


class EmbeddingEngine(Engine, Protocol):
    """Makes vectors of texts; generate answers nothing."""

    async def embed(self, prompts: Sequence[Sequence[int]]) -> list[list[float]]:
        """A vector for each of the texts, given as token ids."""


class QueueFull(Exception):
    """The engine has as many waiting requests as it may hold."""


class EngineFailed(Exception):
    """The engine could not go on with an answer."""
