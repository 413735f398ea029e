"""An engine that repeats the prompt, added through the table of engines alone; then the commands.

test_added_engine_and_metric.py runs `python -m tests.integration.added_engine FOLDER`, so that the
table of the tests' own process stays as it is. FOLDER holds the artifacts of merge and export.
"""

import asyncio
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.core.stage import Component
from pipeline.engines.base import Load, Sampling, Token
from pipeline.engines.checkpoint import Checkpoint
from pipeline.engines.description import Description
from pipeline.engines.profile import Profile
from pipeline.engines.record import EngineRecord, Site
from pipeline.engines.registry import ENGINES
from pipeline.engines.token_stream import PushedStream


class EchoEngine:
    """Answers with the prompt's tokens."""

    features = frozenset[str]()

    def __init__(self, description: Description) -> None:
        self.max_input_len, self.max_seq_len = description.max_input_len, description.max_seq_len

    def generate(self, prompt: Sequence[int], sampling: Sampling) -> PushedStream:
        stream = PushedStream(lambda: None)
        stream.put([Token(token) for token in prompt[: sampling.max_tokens]])
        stream.end()
        return stream

    def load(self) -> Load:
        return Load(0, 0)

    def down(self) -> str | None:
        return None

    def close(self) -> None: ...


def profiles(checkpoints: Sequence[Checkpoint], site: Site) -> Iterator[Profile]:
    for checkpoint in checkpoints:
        if checkpoint.form == "hf":
            yield Profile("echo", "fp32", 1, 0, False, "hf")


ECHO = EngineRecord(
    name="echo",
    component=Component("engine/echo", 3, ("tokenizers",), ("tests.integration.added_engine",)),
    version=lambda: "1.0",
    open=lambda folder, description, max_queue: EchoEngine(description),
    devices=("cpu",),
    profiles=profiles,
    own_process=True,
)


def commands(folder: Path) -> list[list[str]]:
    model = ("model=local", "model.name=echoed", f"model.path={folder / 'merge'}")
    here, engine = f"artifacts={folder}", "engine.name=echo"
    return [
        ["--help"],
        ["stage=doctor", here],
        *([f"stage={name}", here, *model, engine] for name in ("plan", "profiles")),
        ["stage=build", here, engine],
    ]


def ask(folder: Path) -> str:
    """One chat completion of the built engine, through the real application."""
    import httpx

    from pipeline.engines.opening import open_engine
    from pipeline.models.chat.renderer import Chat
    from pipeline.serving.app import create_app

    served = open_engine(folder, max_queue=4)
    assert isinstance(served.chat, Chat)
    app = create_app(served.engine, served.chat, model="bank", slots=1)
    body = {"model": "bank", "messages": [{"role": "user", "content": "a fee"}], "max_tokens": 64}

    async def send() -> str:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            answer = await client.post("/v1/chat/completions", json=body)
            answer.raise_for_status()
            return answer.json()["choices"][0]["message"]["content"]

    return asyncio.run(send())


def main(folder: Path) -> int:
    from pipeline.__main__ import main as run

    ENGINES.add(ECHO)
    for command in commands(folder):
        print(f"== {command[0]}", flush=True)
        if code := run([*command, "tracking.enabled=false"] if len(command) > 1 else command):
            return code
    print(f"== answer\n{ask(folder / 'build')}")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
