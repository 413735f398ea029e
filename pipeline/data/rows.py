"""What readers make of a file's lines: conversations, and rows that are rejected with a reason."""

from dataclasses import dataclass, field
from typing import Any

from pipeline.core.console import printable
from pipeline.data.tags import NONE, Tags
from pipeline.models.chat.messages import Message, Unusable

EXCERPT = 120  # characters


@dataclass(frozen=True)
class Conversation:
    """A row that can be rendered: a training row, or a test question with its answer.

    left_out: names of its fields that have no effect on training and are known to be harmless.
    rejected: of a pair, the same conversation with the worse answer. label: whether the answer is a
    good one, if training learns from that. tools: those that may be called, in OpenAI's form.
    tags: what the row says of itself, for slices of the test questions. format: the field that
    decided what the row is. thread: the conversation that it is a part of, where it names one.
    mapped: fields that were read from columns of another name (data.columns).
    """

    file: str
    line: int
    messages: list[Message]
    excerpt: str
    left_out: frozenset[str] = frozenset()
    rejected: list[Message] | None = None
    label: bool | None = None
    tools: list[dict[str, Any]] = field(default_factory=list)
    tags: Tags = NONE
    format: str = ""
    thread: str | None = None
    mapped: frozenset[str] = frozenset()

    @property
    def place(self) -> str:
        return f"{self.file}:{self.line}"

    def reject(self, error: Unusable) -> "Rejected":
        """The row, not used, for this reason."""
        return Rejected(self.file, self.line, error.reason, error.detail, self.excerpt, error.field)


@dataclass(frozen=True)
class Rejected:
    """A row that is not used, with a reason, a detail and a field as in Unusable."""

    file: str
    line: int
    reason: str
    detail: str
    excerpt: str
    field: str | None = None


@dataclass(frozen=True)
class Line:
    """A line of a file. fault: why it cannot be used, or None."""

    number: int
    text: str
    fault: str | None
    detail: str = ""

    def rejected(self, file: str, reason: str, detail: str, field: str | None = None) -> Rejected:
        return Rejected(file, self.number, reason, detail, excerpt(self.text), field)


def excerpt(text: str) -> str:
    """The beginning of a text, on one line and safe to print."""
    text = printable(" ".join(text[: 4 * EXCERPT].split()))
    return text if len(text) <= EXCERPT else text[: EXCERPT - 1] + "…"
