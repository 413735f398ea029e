"""The test questions, asked of a built engine that a server of its own serves.

stage=benchmark asks the engine that was just built, stage=register an earlier champion's.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

from pipeline.core.artifact import Artifact
from pipeline.data.dataset import Row
from pipeline.evaluation.metrics import Answers
from pipeline.models.sampling_defaults import FILE, NAMES
from pipeline.serving.benchmark.questions import ask_all, bodies
from pipeline.serving.server_process import RunningServer


def sampling_of(engine: Artifact) -> dict[str, float]:
    """The sampling of requests that name none."""
    file = engine.path / FILE
    named = json.loads(file.read_text()) if file.is_file() else {}
    found = {name: float(named[name]) for name in NAMES if named.get(name) is not None}
    return {"temperature": 1.0, **found}  # as the server samples without a default


def requests_for(
    engine: Artifact, rows: Sequence[Row], model: str, *, most_tokens: int, seed: int
) -> list[dict[str, Any]]:
    """Requests with the rows' questions, each with as many tokens for its answer as a client would
    get, at most `most_tokens`."""
    described = json.loads((engine.path / "engine.json").read_text())
    room = described["max_seq_len"]
    return bodies(
        [row.messages[:-1] for row in rows],
        [max(1, min(most_tokens, room - len(row.prompt_ids or ()))) for row in rows],
        [row.tools for row in rows],
        model=model,
        sampled=sampling_of(engine)["temperature"] > 0,
        seed=seed,
    )


def ask(
    server: RunningServer,
    engine: Artifact,
    rows: Sequence[Row],
    *,
    model: str,
    most_tokens: int,
    seed: int,
    concurrency: int,
    advance: Callable[[], None] = lambda: None,
) -> tuple[Answers, list[bool]]:
    """The answers to all questions, and which questions the server refused as too long.

    Raises:
        PipelineError: the server fails.
    """
    requests = requests_for(engine, rows, model, most_tokens=most_tokens, seed=seed)
    replies = ask_all(server.url, requests, concurrency, advance)
    answers = Answers(
        texts=[reply.text for reply in replies],
        expected=[str(row.answer) for row in rows],
        cut=[reply.cut or bool(reply.refused) for reply in replies],
    )
    return answers, [bool(reply.refused) for reply in replies]
