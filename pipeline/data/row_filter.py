"""Decides which rows become the dataset: each is kept in a split, or rejected with a reason.

Knows nothing of file formats, or of how the dataset is written.
"""

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.config.prepare import PrepareConfig
from pipeline.data.dataset import Row
from pipeline.data.deduplication import Comparable, Conflict, Conflicts, Duplicates, Leaks
from pipeline.data.passages import Passages
from pipeline.data.rendering import Rendered, Renderer, Rendering
from pipeline.data.rows import Conversation, Rejected
from pipeline.data.tags import NONE, Tags
from pipeline.models.chat.messages import Message, Unusable
from pipeline.models.chat.renderer import Chat
from pipeline.models.chat.thoughts import answer_of
from pipeline.models.chat.tool_calls import said

STEP = 100  # rows between two reports of progress
LEAK, EXACT, NEAR = "leaks a test question", "exact duplicate", "near duplicate"


@dataclass
class Kept:
    """A row, stored compactly. point: a hash of its content in [0, 1), which decides its split."""

    split: str
    point: float
    file: str
    source: str
    messages: list[Message]
    ids: "array[int]"
    mask: bytes
    prompt_ids: "array[int] | None"
    rejected: "Rendering | None" = None
    label: bool | None = None
    tools: list[dict[str, Any]] = field(default_factory=list)
    tags: Tags = NONE

    @property
    def sides(self) -> "list[tuple[array[int], bytes]]":
        """Token ids and loss mask of the conversation, and of the one with the worse answer."""
        more = [(self.rejected.ids, self.rejected.mask)] if self.rejected else []
        return [(self.ids, self.mask), *more]

    def unpack(self) -> Row:
        """The row as the dataset has it, where only test questions have tags."""
        worse = self.rejected
        tags = self.tags if self.prompt_ids is not None else NONE
        return Row(
            messages=self.messages,
            input_ids=self.ids.tolist(),
            loss_mask=list(self.mask),
            source=self.source,
            prompt_ids=None if self.prompt_ids is None else self.prompt_ids.tolist(),
            answer=None if self.prompt_ids is None else _expected(self.messages[-1]),
            rejected=None if worse is None else worse.messages,
            rejected_ids=None if worse is None else worse.ids.tolist(),
            rejected_mask=None if worse is None else list(worse.mask),
            label=None if self.label is None else int(self.label),
            tools=self.tools,
            tags=list(tags.names),
            language=tags.language,
        )


def _expected(turn: Message) -> str:
    """The answer that an evaluation expects, without a thought before it."""
    return said({**turn, "content": answer_of(turn["content"])})


class RowFilter:
    """Decides about rows: `add` all of them, then `finish`, which compares them with one another.

    Test rows come first: training rows are compared with them.

    kept, rejected: the rows, in the order in which they were added.
    conflicts: pairs of training rows with the same question and different answers, or different
        verdicts on the same answers; both are kept.
    left_out: fields that have no effect on training, with the number of rows that have them.

    Args:
        serves_tools: whether a server of this model takes tools, as test questions with tools need.
    """

    def __init__(
        self,
        settings: PrepareConfig,
        seed: int,
        chat: Chat,
        serves_tools: Callable[[], bool] = lambda: True,
    ) -> None:
        self.kept: list[Kept] = []
        self.rejected: list[Rejected] = []
        self.conflicts: list[Conflict] = []
        self.left_out: Counter[str] = Counter()
        self._settings = settings
        self._seed = seed
        self._chat = chat
        self._renderer = Renderer(chat, settings.max_length, serves_tools)
        self._rows: list[Rendered | Rejected] = []
        self._passages = Passages()

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, row: Conversation | Rejected, *, is_test: bool) -> None:
        """Render a row of a test file or a training file."""
        self.take(
            self._renderer.render(row, is_test=is_test),
            row.left_out if isinstance(row, Conversation) else (),
        )

    def take(self, row: Rendered | Rejected, left_out: Iterable[str]) -> None:
        """Add a row that was rendered elsewhere. left_out: its fields without an effect."""
        self.left_out.update(sorted(left_out))
        self._rows.append(row)
        if isinstance(row, Rendered):
            for role, text in row.comparable.turns:
                if role != "assistant":
                    self._passages.add(text)

    def finish(self, advance: Callable[[int], None] = lambda _: None) -> None:
        """Keep or reject every row.

        One training row moves to validation if that is empty, as it can be with few rows.

        Args:
            advance: called with the number of rows that were just compared.
        """
        comparison = _Comparison(self._settings, self._passages)
        rows, self._rows = self._rows, []
        for done, row in enumerate(rows, 1):
            if isinstance(row, Rejected):
                self.rejected.append(row)
            else:
                try:
                    if conflict := comparison.check(row.comparable, is_test=row.is_test):
                        self.conflicts.append(conflict)
                    self.kept.append(self._keep(row))
                except Unusable as error:
                    self.rejected.append(row.row.reject(error))
            if done % STEP == 0 or done == len(rows):
                advance((done - 1) % STEP + 1)
        training = [row for row in self.kept if row.split == "train"]
        splits = {row.split for row in self.kept}
        if self._settings.validation_share and "validation" not in splits and len(training) > 1:
            min(training, key=lambda row: row.point).split = "validation"

    def _keep(self, rendered: Rendered) -> Kept:
        row, prompt = rendered.row, None
        if rendered.is_test:
            prompt = array("i", self._chat.prompt(rendered.chosen.messages[:-1], row.tools))
        # Pairs and labels of one prompt go to the same split, so that validation sees new prompts.
        alone = row.rejected is None and row.label is None
        point = self._point(row.messages if alone else _prompt_of(row.messages))
        is_validation = point < self._settings.validation_share
        split = "test" if rendered.is_test else "validation" if is_validation else "train"
        chosen = rendered.chosen
        return Kept(
            split, point, row.file, row.place, chosen.messages, chosen.ids, chosen.mask, prompt,
            rendered.rejected, row.label, row.tools, row.tags,
        )  # fmt: skip

    def _point(self, messages: Sequence[Message]) -> float:
        """Depends on seed and content only: a row keeps its split when other rows come or go."""
        content = json.dumps([self._seed, messages], sort_keys=True).encode()
        return int.from_bytes(hashlib.sha256(content).digest()[:6], "big") / 2**48


class _Comparison:
    """Compares rows with those before them."""

    def __init__(self, settings: PrepareConfig, passages: Passages) -> None:
        self._leaks = Leaks(settings.leak_threshold, passages)
        self._tests = Duplicates(settings.near_duplicate_threshold, passages)
        self._training = Duplicates(settings.near_duplicate_threshold, passages)
        self._answers = Conflicts()

    def check(self, row: Comparable, *, is_test: bool) -> Conflict | None:
        """A conflict with an earlier training row, or None.

        Raises:
            Unusable: it leaks a test question, or is a duplicate.
        """
        if not is_test and (leak := self._leaks.find(row)):
            how = "asks" if leak.exact else "nearly asks"
            raise Unusable(LEAK, f"{how} what {leak.place} asks")
        seen = self._tests if is_test else self._training
        if match := seen.add(row):
            raise Unusable(EXACT if match.exact else NEAR, f"of {match.place}")
        if is_test:
            self._leaks.add_test(row)
            return None
        return self._answers.add(row)


def _prompt_of(messages: Sequence[Message]) -> Sequence[Message]:
    """The turns before the first answer that is trained on."""
    trained = [bool(m["role"] == "assistant" and m.get("weight", 1)) for m in messages]
    return messages[: trained.index(True)]
