"""Decides which rows become the dataset: each is kept in a split, or rejected with a reason.

Knows nothing of file formats, or of how the dataset is written.
"""

import hashlib
import json
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.config.prepare import PrepareConfig
from pipeline.data.dataset import Row
from pipeline.data.deduplication import (
    BandTable,
    Comparable,
    Conflict,
    Conflicts,
    Duplicates,
    Leaks,
)
from pipeline.data.packing import pack, unpack
from pipeline.data.passages import Passages
from pipeline.data.rendering import Rendered, Renderer
from pipeline.data.rows import Conversation, Rejected
from pipeline.data.tags import NONE, Tags
from pipeline.models.chat.messages import Message, Unusable
from pipeline.models.chat.renderer import Chat
from pipeline.models.chat.thoughts import answer_of
from pipeline.models.chat.tool_calls import said

STEP = 100  # rows between two reports of progress
LEAK, EXACT, NEAR = "leaks a test question", "exact duplicate", "near duplicate"


@dataclass(slots=True)
class Kept:
    """A row, stored compactly. point: a hash of its content in [0, 1), which decides its split.

    packed: its messages and tools (packing.py), and those of the worse answer of a pair, whose ids
        and mask are in `worse`.
    """

    split: str
    point: float
    file: str
    source: str
    packed: bytes
    ids: "array[int]"
    mask: bytes
    prompt_ids: "array[int] | None" = None
    worse: "tuple[array[int], bytes] | None" = None
    label: bool | None = None
    tags: Tags = NONE

    @property
    def messages(self) -> list[Message]:
        return unpack(self.packed)[0]

    @property
    def tools(self) -> list[dict[str, Any]]:
        return unpack(self.packed)[2]

    @property
    def sides(self) -> "list[tuple[array[int], bytes]]":
        """Token ids and loss mask of the conversation, and of the one with the worse answer."""
        return [(self.ids, self.mask), *([self.worse] if self.worse else [])]

    def unpack(self) -> Row:
        """The row as the dataset has it, where only test questions have tags."""
        messages, rejected, tools = unpack(self.packed)
        worse = self.worse
        tags = self.tags if self.prompt_ids is not None else NONE
        return Row(
            messages=messages,
            input_ids=self.ids.tolist(),
            loss_mask=list(self.mask),
            source=self.source,
            prompt_ids=None if self.prompt_ids is None else self.prompt_ids.tolist(),
            answer=None if self.prompt_ids is None else _expected(messages[-1]),
            rejected=rejected,
            rejected_ids=None if worse is None else worse[0].tolist(),
            rejected_mask=None if worse is None else list(worse[1]),
            label=None if self.label is None else int(self.label),
            tools=tools,
            tags=list(tags.names),
            language=tags.language,
        )


def _expected(turn: Message) -> str:
    """The answer that an evaluation expects, without a thought before it."""
    return said({**turn, "content": answer_of(turn["content"])})


class RowFilter:
    """Decides about rows: `add` all of them, then `finish`, which compares them with one another.

    Test rows are decided first: training rows are compared with them.

    kept, rejected: the rows, in the order in which they were added, test rows first.
    conflicts: pairs of training rows with the same question and different answers, or different
        verdicts on the same answers; both are kept.
    left_out: fields that have no effect on training, with the number of rows that have them.
    formats: by file, the fields that decided what its rows are, with the number of rows.
    mapped: fields that were read from columns of another name.

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
        self.mapped: set[str] = set()
        self.formats: dict[str, Counter[str]] = defaultdict(Counter)
        self._settings = settings
        self._seed = seed
        self._chat = chat
        self._renderer = Renderer(chat, settings.max_length, serves_tools)
        self._rows: list[_Waiting | Rejected] = []
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
        if isinstance(row, Rejected):
            self._rows.append(row)
            return
        self.mapped |= row.row.mapped
        self.formats[row.row.file][row.row.format] += 1
        for role, text in row.comparable.turns:
            if role != "assistant":
                self._passages.add(text)
        self._rows.append(self._wait(row))

    def finish(self, advance: Callable[[int], None] = lambda _: None) -> None:
        """Keep or reject every row.

        One training row moves to validation if that is empty, as it can be with few rows.

        Args:
            advance: called with the number of rows that were just compared.
        """
        rows, self._rows = _tests_first(self._rows), []
        comparison = _Comparison(self._settings, self._passages, rows)
        for done, row in enumerate(rows, 1):
            if isinstance(row, Rejected):
                self.rejected.append(row)
            else:
                try:
                    if conflict := comparison.check(row, done - 1):
                        self.conflicts.append(conflict)
                    self.kept.append(self._keep(row.kept))
                except Unusable as error:
                    self.rejected.append(row.reject(error))
            rows[done - 1] = _DECIDED  # its memory is free for what follows
            if done % STEP == 0 or done == len(rows):
                advance((done - 1) % STEP + 1)
        training = [row for row in self.kept if row.split == "train"]
        splits = {row.split for row in self.kept}
        if self._settings.validation_share and "validation" not in splits and len(training) > 1:
            min(training, key=lambda row: row.point).split = "validation"

    def _wait(self, rendered: Rendered) -> "_Waiting":
        """The row, compact, until all rows are there."""
        row, chosen, worse = rendered.row, rendered.chosen, rendered.rejected
        # Pairs and labels of one prompt go to the same split, so that validation sees new prompts.
        alone = row.rejected is None and row.label is None
        point = self._point(row.messages if alone else _prompt_of(row.messages))
        is_validation = point < self._settings.validation_share
        packed = pack(chosen.messages, worse.messages if worse else None, row.tools)
        kept = Kept(
            "test" if rendered.is_test else "validation" if is_validation else "train",
            point, row.file, rendered.comparable.place, packed, chosen.ids, chosen.mask, None,
            (worse.ids, worse.mask) if worse else None, row.label, row.tags,
        )  # fmt: skip
        if chosen.messages != row.messages or (worse and worse.messages != row.rejected):
            packed = pack(row.messages, row.rejected, row.tools)
        rendered.comparable.pack(packed)
        return _Waiting(kept, rendered.comparable, row.excerpt)

    def _keep(self, kept: Kept) -> Kept:
        if kept.split == "test":
            kept.prompt_ids = array("i", self._chat.prompt(kept.messages[:-1], kept.tools))
        return kept

    def _point(self, messages: Sequence[Message]) -> float:
        """Depends on seed and content only: a row keeps its split when other rows come or go."""
        content = json.dumps([self._seed, messages], sort_keys=True).encode()
        return int.from_bytes(hashlib.sha256(content).digest()[:6], "big") / 2**48


@dataclass(slots=True)
class _Waiting:
    """A row that is not compared yet."""

    kept: Kept
    comparable: Comparable
    excerpt: str

    def reject(self, error: Unusable) -> Rejected:
        line = int(self.kept.source.rpartition(":")[2])
        return Rejected(self.kept.file, line, error.reason, error.detail, self.excerpt, error.field)


_DECIDED = Rejected("", 0, "", "", "")


def _tests_first(rows: Sequence[_Waiting | Rejected]) -> list[_Waiting | Rejected]:
    """The rows in their order, but that no training row stands before a test row."""
    tests: list[_Waiting | Rejected] = []
    training: list[_Waiting | Rejected] = []
    for row in rows:
        is_first = not training if isinstance(row, Rejected) else row.kept.split == "test"
        (tests if is_first else training).append(row)
    return tests + training


class _Comparison:
    """Compares rows with those before them.

    rows: all of them, test rows first.
    """

    def __init__(
        self, settings: PrepareConfig, passages: Passages, rows: Sequence[_Waiting | Rejected]
    ) -> None:
        self._leaks = Leaks(settings.leak_threshold, passages)
        self._tests = Duplicates(settings.near_duplicate_threshold, passages)
        self._training = Duplicates(settings.near_duplicate_threshold, passages)
        self._answers = Conflicts()
        asked = (row.comparable.asked if isinstance(row, _Waiting) else "" for row in rows)
        self._bands = BandTable(asked, len(rows), passages)

    def check(self, row: _Waiting, number: int) -> Conflict | None:
        """A conflict with an earlier training row, or None.

        number: of the row.

        Raises:
            Unusable: it leaks a test question, or is a duplicate.
        """
        is_test, comparable = row.kept.split == "test", row.comparable.unpacked()
        packed = row.comparable
        if not is_test and (leak := self._leaks.find(comparable)):
            how = "asks" if leak.exact else "nearly asks"
            raise Unusable(LEAK, f"{how} what {leak.place} asks")
        seen = self._tests if is_test else self._training
        if match := seen.add(comparable, self._bands[number], packed):
            raise Unusable(EXACT if match.exact else NEAR, f"of {match.place}")
        if is_test:
            self._leaks.add_test(comparable)
            return None
        return self._answers.add(comparable, packed)


def _prompt_of(messages: Sequence[Message]) -> Sequence[Message]:
    """The turns before the first answer that is trained on."""
    trained = [bool(m["role"] == "assistant" and m.get("weight", 1)) for m in messages]
    return messages[: trained.index(True)]
