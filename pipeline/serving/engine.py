"""What the server asks of an engine: token ids in, token ids out, cancellable.

An engine knows nothing of text, of HTTP or of OpenAI. BatchingEngine (batching.py) is one around a
model that is stepped token by token; runtimes that batch by themselves need only this protocol.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol


@dataclass(frozen=True)
class Guide:
    """What an answer must match."""

    kind: Literal["json_object", "json_schema", "regex", "lark"]
    text: str


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen, and when an answer ends.

    max_tokens: tokens of the answer at most.
    temperature: 0 takes the likeliest token. top_p: 1 keeps all. top_k: 0 keeps all.
    seed: the same seed gives the same answer; None a random one.
    stop_ids: tokens that end the answer; the one that does is given out as its last.
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

    Iterating raises EngineFailed if the engine breaks down.
    """

    def __aiter__(self) -> "TokenStream": ...

    async def __anext__(self) -> list[int]: ...

    def cancel(self) -> None:
        """Free the slot; without effect once the answer has ended."""


class Engine(Protocol):
    """max_input_len, max_seq_len: tokens of a prompt, and of prompt and answer together."""

    max_input_len: int
    max_seq_len: int

    def generate(self, prompt: Sequence[int], sampling: Sampling) -> TokenStream:
        """Begin an answer; called in the event loop that will read it.

        Raises:
            QueueFull: as many requests wait as may.
        """

    def load(self) -> Load: ...

    def close(self) -> None:
        """End every answer with EngineFailed and let go of the model."""


class QueueFull(Exception):
    """The engine has as many waiting requests as it may hold."""


class EngineFailed(Exception):
    """The engine could not go on with an answer."""
