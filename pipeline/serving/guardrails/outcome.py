"""What a rail decides about a text, and what is reported of that."""

from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["input", "dialog", "retrieval", "tool_input", "tool_output", "output"]
Decision = Literal["passed", "changed", "blocked", "answered", "failed"]


@dataclass(frozen=True)
class Call:
    """A call of a model by a rail; without its text, which may quote what was blocked."""

    task: str
    seconds: float
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Outcome:
    """The decision of one rail about one text.

    configuration: its id. rail: the flow's name, as the configuration writes it.
    values: the variables that the rail changed, such as user_message.
    message: what to answer instead, if it blocks or answers.
    detail: why, in words that quote nothing of the text.
    actions: names of the actions that it ran.
    """

    configuration: str
    rail: str
    kind: Kind
    decision: Decision
    seconds: float
    values: dict[str, str] = field(default_factory=dict)
    message: str = ""
    detail: str | None = None
    actions: tuple[str, ...] = ()
    calls: tuple[Call, ...] = ()

    @property
    def stops(self) -> bool:
        """Whether no rail after it runs, and the model does not answer."""
        return self.decision in ("blocked", "answered", "failed")

    def __str__(self) -> str:
        """For the log: `bank/regex check input: blocked`."""
        return f"{self.configuration}/{self.rail}: {self.decision}"

    def to_json(self) -> dict[str, Any]:
        """As an entry of NeMo Guardrails' `log.activated_rails`, without any text of the user."""
        info = {"configuration": self.configuration, "decision": self.decision}
        if self.detail:
            info["reason"] = self.detail
        return {
            "type": self.kind,
            "name": self.rail,
            "decisions": [self.decision, *(["stop"] if self.stops else [])],
            "executed_actions": [{"action_name": name} for name in self.actions],
            "stop": self.stops,
            "additional_info": info,
            "duration": round(self.seconds, 6),
        }
