"""What requests cost, and whether another one still fits. Money is counted exactly, in Decimal.

Before a request is sent, the most that it can cost is reserved: a token for each byte of its prompt
(no tokenizer makes more), what a chat template adds, and all tokens that its answer may have. So
the sum of all requests never exceeds the budget, whatever is in flight.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal

from pipeline.config.endpoint import BudgetConfig, PriceConfig

MILLION = Decimal(10**6)
TEMPLATE = 256  # tokens that a template may add to a prompt, before an answer shows how many
A_TURN = 16  # and to each of its turns


@dataclass(frozen=True)
class Use:
    """Tokens and money."""

    tokens: int = 0
    cost: Decimal = Decimal(0)

    def __add__(self, other: "Use") -> "Use":
        return Use(self.tokens + other.tokens, self.cost + other.cost)

    def __sub__(self, other: "Use") -> "Use":
        return Use(self.tokens - other.tokens, self.cost - other.cost)


NOTHING = Use()


def money(cost: Decimal) -> str:
    """An amount for messages, in whole cents, rounded up.

    >>> money(Decimal("0.4712"))
    '0.48'
    """
    return str(cost.quantize(Decimal("0.01"), rounding=ROUND_CEILING))


class Budget:
    """Counts what was used and reserved, against the limits.

    Attributes:
        used: of all requests, those of earlier runs included.
    """

    def __init__(self, limits: BudgetConfig, price: PriceConfig, used: Use) -> None:
        self.used = used
        self._reserved = NOTHING
        self._most_tokens = limits.tokens
        self._most_cost = None if limits.cost is None else Decimal(str(limits.cost))
        self._prompt = Decimal(str(price.prompt))
        self._completion = Decimal(str(price.completion))
        self._template = TEMPLATE

    def use(self, prompt_tokens: int, completion_tokens: int) -> Use:
        """What so many tokens cost."""
        cost = (self._prompt * prompt_tokens + self._completion * completion_tokens) / MILLION
        return Use(prompt_tokens + completion_tokens, cost)

    def most(self, messages: Sequence[Mapping[str, str]], max_tokens: int) -> Use:
        """The most that a request can use."""
        return self.use(_bytes(messages) + self._template, max_tokens)

    @property
    def reserved(self) -> bool:
        """Whether a request is in flight."""
        return self._reserved != NOTHING

    def fits(self, most: Use) -> bool:
        """Whether a request fits beside those in flight."""
        total = self.used + self._reserved + most
        return (self._most_tokens is None or total.tokens <= self._most_tokens) and (
            self._most_cost is None or total.cost <= self._most_cost
        )

    def reserve(self, most: Use) -> None:
        self._reserved += most

    def settle(self, most: Use, used: Use) -> None:
        """Count what a request used in place of what was reserved for it."""
        self._reserved -= most
        self.used += used

    def learn(self, messages: Sequence[Mapping[str, str]], prompt_tokens: int) -> None:
        """Take account of a template that adds more tokens than was assumed."""
        self._template = max(self._template, prompt_tokens - _bytes(messages))

    def spent(self) -> str:
        """What of the limits is used, for messages."""
        parts = []
        if self._most_tokens is not None:
            parts.append(f"{self.used.tokens:,} of {self._most_tokens:,} tokens")
        if self._most_cost is not None:
            parts.append(f"{money(self.used.cost)} of {money(self._most_cost)}")
        return " and ".join(parts) or f"{self.used.tokens:,} tokens"


def _bytes(messages: Sequence[Mapping[str, str]]) -> int:
    return sum(len(m["content"].encode(errors="replace")) + A_TURN for m in messages)
