"""A file of rows, and which of its rows are test questions: what one process or a task needs."""

from dataclasses import dataclass, field
from pathlib import Path

from pipeline.data.forgotten import Forgotten
from pipeline.data.preparation.test_share import TestShare
from pipeline.data.reading import Options
from pipeline.data.rows import Conversation, Rejected


@dataclass(frozen=True)
class Source:
    """A file to read.

    name: as rows have it. options: what its rows mean. share: decides which rows become test
    questions; None if none does. forgotten: conversations that are not used.
    """

    file: Path
    name: str
    options: Options
    share: TestShare | None = None
    forgotten: Forgotten = field(default_factory=Forgotten)

    def asked(self, row: Conversation | Rejected) -> tuple[Conversation | Rejected, bool]:
        """A row of the file as it is used, and whether it is a test question."""
        row = self.forgotten.check(row)
        if self.share and isinstance(row, Conversation):
            question = self.share.question(row)
            return question or row, question is not None
        return row, self.options.is_test
