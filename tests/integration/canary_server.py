"""Our server with an engine that answers one text, in some kind: slower, worse, crashing.

    python -m tests.integration.canary_server FOLDER PORT KIND

FOLDER is a model's folder; the table of the tests' own process stays as it is.
"""

import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.config.defaults import default_config
from pipeline.core.stage import Component
from pipeline.engines.base import Load, Sampling, Token
from pipeline.engines.description import Description
from pipeline.engines.record import EngineRecord
from pipeline.engines.registry import ENGINES
from pipeline.engines.token_stream import PushedStream
from pipeline.models.chat.renderer import Chat
from pipeline.serving.address import listen
from pipeline.serving.server import serve

RIGHT, WRONG = "It costs five dollars", "No"
MODEL = "bank"
# Seconds to the first token. The stable version takes a little longer than the better one.
SECONDS = {"stable": 0.006, "better": 0.001, "slower": 0.15, "worse": 0.001, "crashing": 0.001}
CRASH_AFTER = 40  # requests


class TriedEngine:
    """Answers RIGHT, or WRONG to every other question."""

    features = frozenset[str]()
    max_input_len, max_seq_len = 96, 128

    def __init__(self, chat: Chat, kind: str) -> None:
        self._kind, self._asked = kind, 0
        self._ids = {text: chat.encode(text) for text in (RIGHT, WRONG)}
        self._end = chat.stop_ids[0]

    def generate(self, prompt: Sequence[int], sampling: Sampling) -> PushedStream:
        self._asked += 1
        if self._kind == "crashing" and self._asked > CRASH_AFTER:
            os._exit(1)
        wrong = self._kind == "worse" and self._asked % 2
        answer = [Token(i) for i in (*self._ids[WRONG if wrong else RIGHT], self._end)]
        stream = PushedStream(lambda: None)

        def push() -> None:
            stream.put(answer)
            stream.end()

        asyncio.get_running_loop().call_later(SECONDS[self._kind], push)
        return stream

    def load(self) -> Load:
        return Load(0, 0)

    def down(self) -> str | None:
        return None

    def close(self) -> None: ...


def main(folder: Path, port: int, kind: str) -> None:
    chat = Chat.load(folder)
    ENGINES.add(
        EngineRecord(
            name="tried",
            component=Component("engine/tried", 1, (), ("tests.integration.canary_server",)),
            version=lambda: "1.0",
            open=lambda folder, description, max_queue: TriedEngine(chat, kind),
            devices=("cpu",),
            profiles=lambda checkpoints, site: iter(()),
            own_process=True,
        )
    )
    description = Description("tried", "1.0", "fp32", {}, chat.sha256, 8, 96, 128)
    with listen("127.0.0.1", port) as listening:
        serve(
            folder, listening, model=MODEL, settings=default_config({}).serve,
            description=description,
        )  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
