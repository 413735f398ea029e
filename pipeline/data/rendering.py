"""Rows as the model reads them, each for itself: what can be done in any order, on any machine."""

from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipeline.data.deduplication import Comparable
from pipeline.data.preference_rows import EQUAL
from pipeline.data.rows import Conversation, Rejected
from pipeline.models.chat.messages import PLAIN, Message, Unusable
from pipeline.models.chat.renderer import Chat

TEST_TOOLS = "tools of a test question"


@dataclass(frozen=True)
class Rendering:
    """A conversation and its tokens, stored compactly."""

    messages: list[Message]
    ids: "array[int]"
    mask: bytes


@dataclass(frozen=True)
class Rendered:
    """A row that can be trained on, before it is compared with the others."""

    row: Conversation
    comparable: Comparable
    is_test: bool
    chosen: Rendering
    rejected: Rendering | None


class Renderer:
    """Renders rows with a model's chat template.

    Args:
        max_length: most tokens of a conversation.
        serves_tools: whether a server of this model takes tools, as test questions with tools need.
    """

    def __init__(
        self, chat: Chat, max_length: int, serves_tools: Callable[[], bool] = lambda: True
    ) -> None:
        self._chat = chat
        self._max_length = max_length
        self._serves_tools = serves_tools

    def render(self, row: Conversation | Rejected, *, is_test: bool) -> Rendered | Rejected:
        """The row with its tokens, or rejected with a reason."""
        if isinstance(row, Rejected):
            return row
        try:
            return self._render(row, is_test)
        except Unusable as error:
            return row.reject(error)

    def _render(self, row: Conversation, is_test: bool) -> Rendered:
        if is_test and row.tools and not self._serves_tools():
            raise Unusable(
                TEST_TOOLS,
                "a server cannot parse the calls that this model's chat template writes, so the "
                "question cannot be asked: use the row in data.train",
                "tools",
            )
        chosen, rejected = self._tokens(row.messages, row.tools), None
        if row.rejected is not None:
            try:
                rejected = self._tokens(row.rejected, row.tools)
            except Unusable as error:
                raise Unusable(
                    error.reason, f"the rejected side: {error.detail}", error.field
                ) from error
            if rejected.ids == chosen.ids:
                raise Unusable(EQUAL, "the chat template writes both sides alike")
        comparable = Comparable(row.messages, row.place, row.rejected, row.label, row.tools)
        return Rendered(row, comparable, is_test, chosen, rejected)

    def _tokens(self, messages: list[Message], tools: list[dict[str, Any]]) -> Rendering:
        if messages[0]["role"] == PLAIN:
            rendered = self._chat.render_plain(messages[0]["content"])
        else:
            messages = self._chat.as_written(messages, tools)
            rendered = self._chat.render(messages, tools)
        if len(rendered.ids) > self._max_length:
            raise Unusable(
                "too long",
                f"{len(rendered.ids)} tokens; prepare.max_length is {self._max_length}",
            )
        if not any(rendered.mask):
            raise Unusable("nothing to train on", "every assistant turn is context (weight 0)")
        return Rendering(messages, array("i", rendered.ids), bytes(rendered.mask))
