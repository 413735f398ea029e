"""Test questions from training rows, where there are no test files (data.test_share).

What a row begins with decides, and the seed: so a conversation that is spread over several rows, or
asked twice, is on one side whole, and a row stays there when others come and go. Training rows that
ask what a test row asks are then rejected, as beside test files.
"""

import hashlib
import json
from dataclasses import replace

from pipeline.data.deduplication import normalise
from pipeline.data.rows import Conversation
from pipeline.models.chat.messages import PLAIN

# So many letters of what the user says tell conversations apart; "Hello" alone does not.
LETTERS = 40


class TestShare:
    """Decides which training rows become test questions.

    share: about so many of the conversations. takes_tools: whether a question may have tools.
    """

    __test__ = False  # no case of pytest

    def __init__(self, share: float, seed: int, *, takes_tools: bool) -> None:
        self._share, self._seed, self._takes_tools = share, seed, takes_tools

    def question(self, row: Conversation) -> Conversation | None:
        """The row as a test question, or None if it is a training row.

        Plain text, bad answers, and rows with tools that nobody can call are no questions.
        """
        if row.messages[0]["role"] == PLAIN or row.label is False:
            return None
        if row.tools and not self._takes_tools:
            return None
        if self._point(row) >= self._share:
            return None
        return replace(row, rejected=None, label=None)

    def _point(self, row: Conversation) -> float:
        """In [0, 1); the same for all rows of a conversation."""
        beginning = ""
        for turn in row.messages:
            if turn["role"] == "user" and len(beginning) < LETTERS:
                beginning += normalise(turn["content"]) + "\n"
        key = json.dumps([self._seed, "test_share", row.thread or beginning]).encode()
        return int.from_bytes(hashlib.sha256(key).digest()[:6], "big") / 2**48
