"""Decides which rows become the dataset: each is kept in a split, or rejected with a reason.

Knows nothing of file formats, or of how the dataset is written.
"""

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.config.prepare import PrepareConfig
from pipeline.data.dataset import Row
from pipeline.data.deduplication import Conflict, Conflicts, Duplicates, Leaks
from pipeline.data.rows import Conversation, Rejected
from pipeline.models.chat.messages import Message, Unusable
from pipeline.models.chat.renderer import Chat

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

    def unpack(self) -> Row:
        return Row(
            messages=self.messages,
            input_ids=self.ids.tolist(),
            loss_mask=list(self.mask),
            source=self.source,
            prompt_ids=None if self.prompt_ids is None else self.prompt_ids.tolist(),
            answer=None if self.prompt_ids is None else self.messages[-1]["content"],
        )


class RowFilter:
    """Decides about rows one at a time. Test rows come first: training rows are compared with them.

    kept, rejected: the rows, in the order in which they were added.
    conflicts: pairs of training rows with the same question and different answers; both are kept.
    left_out: fields that have no effect on training, with the number of rows that have them.
    """

    def __init__(self, settings: PrepareConfig, seed: int, chat: Chat) -> None:
        self.kept: list[Kept] = []
        self.rejected: list[Rejected] = []
        self.conflicts: list[Conflict] = []
        self.left_out: Counter[str] = Counter()
        self._settings = settings
        self._seed = seed
        self._chat = chat
        self._leaks = Leaks(settings.leak_threshold)
        self._tests = Duplicates(settings.near_duplicate_threshold)
        self._training = Duplicates(settings.near_duplicate_threshold)
        self._answers = Conflicts()

    def add(self, row: Conversation | Rejected, *, is_test: bool) -> None:
        """Keep or reject a row of a test file or a training file."""
        if isinstance(row, Conversation):
            self.left_out.update(sorted(row.left_out))
            try:
                self.kept.append(self._keep(row, is_test))
                return
            except Unusable as error:
                row = Rejected(
                    row.file, row.line, error.reason, error.detail, row.excerpt, error.field
                )
        self.rejected.append(row)

    def finish(self) -> None:
        """Move one training row to validation if that is empty, as it can be with few rows."""
        training = [row for row in self.kept if row.split == "train"]
        splits = {row.split for row in self.kept}
        if self._settings.validation_share and "validation" not in splits and len(training) > 1:
            min(training, key=lambda row: row.point).split = "validation"

    def _keep(self, row: Conversation, is_test: bool) -> Kept:
        rendered = self._chat.render(row.messages)
        limit = self._settings.max_length
        if len(rendered.ids) > limit:
            raise Unusable("too long", f"{len(rendered.ids)} tokens; prepare.max_length is {limit}")
        if not any(rendered.mask):
            raise Unusable("nothing to train on", "every assistant turn has weight 0")
        if not is_test and (leak := self._leaks.find(row.messages)):
            how = "asks" if leak.exact else "nearly asks"
            raise Unusable(LEAK, f"{how} what {leak.place} asks")
        seen = self._tests if is_test else self._training
        if match := seen.add(row.messages, row.place):
            kind = EXACT if match.exact else NEAR
            raise Unusable(kind, f"of {match.place}")
        prompt = None
        if is_test:
            self._leaks.add_test(row.messages, row.place)
            prompt = array("i", self._chat.prompt(row.messages[:-1]))
        elif conflict := self._answers.add(row.messages, row.place):
            self.conflicts.append(conflict)
        point = self._point(row.messages)
        is_validation = point < self._settings.validation_share
        split = "test" if is_test else "validation" if is_validation else "train"
        ids, mask = array("i", rendered.ids), bytes(rendered.mask)
        return Kept(split, point, row.file, row.place, row.messages, ids, mask, prompt)

    def _point(self, messages: Sequence[Message]) -> float:
        """Depends on seed and content only: a row keeps its split when other rows come or go."""
        content = json.dumps([self._seed, messages], sort_keys=True).encode()
        return int.from_bytes(hashlib.sha256(content).digest()[:6], "big") / 2**48
