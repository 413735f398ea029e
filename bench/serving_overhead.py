"""What the server costs beside the bare engine, and what batching gains, on a CPU.

    python -m bench.serving_overhead artifacts/build bench/results/serving_overhead.json

Each question is answered in turn by the engine alone, in this process, and by the same engine
behind the server, over loopback and with the client's own work counted in; the costs are medians of
the differences. Then the server alone is loaded with one and with 16 requests at once. Answers are
greedy and go on to their limit, so that both give the same tokens. Bars: 3 ms a request, 5 ms to
the first token, 3 times the tokens a second.
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.chat import Chat
from pipeline.graph import ROOT
from pipeline.hardware import inspect_machine
from pipeline.serving.description import Description
from pipeline.serving.engine import Engine, Sampling
from pipeline.serving.load import Level, ask, run_load
from pipeline.serving.process import running_server
from pipeline.serving.runtimes import open_runtime

MODEL = "demo"
MOST_MS, MOST_FIRST_MS, LEAST_GAIN = 3.0, 5.0, 3.0
AT_ONCE = 16


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("engine", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--answer", type=int, default=32, help="tokens")
    given = parser.parse_args()
    busy = os.getloadavg()[0]
    engine_folder = given.engine.resolve()
    chat, description = Chat.load(engine_folder), Description.read(engine_folder)
    messages = questions(given.requests)
    bodies = [
        {
            "model": MODEL,
            "messages": turns,
            "max_tokens": given.answer,
            "temperature": 0,
            "ignore_eos": True,
        }
        for turns in messages
    ]
    engine = open_runtime(engine_folder, description, max_queue=AT_ONCE)
    with (
        tempfile.TemporaryDirectory() as folder,
        running_server(engine_folder, model=MODEL, log=Path(folder) / "server.log") as server,
    ):
        sampling = Sampling(max_tokens=given.answer, temperature=0)
        prompts = [chat.prompt(turns) for turns in messages]
        firsts, wholes = asyncio.run(compare(engine, prompts, sampling, server.url, bodies))
        engine.close()
        levels = {n: run_load(server.url, bodies, n) for n in (1, AT_ONCE)}
    speeds = {n: tokens_per_second(level) for n, level in levels.items()}
    report: dict[str, Any] = {
        "machine": {k: v for k, v in asdict(inspect_machine()).items() if k != "gpus"},
        "load_average_before": busy,
        "requests": given.requests,
        "answer_tokens": given.answer,
        "cost_ms_median": 1e3 * statistics.median(wholes),
        "first_token_cost_ms_median": 1e3 * statistics.median(firsts),
        "tokens_per_second": speeds,
        "gain": speeds[AT_ONCE] / speeds[1],
    }
    report["bars"] = {
        "cost_ms_median": report["cost_ms_median"] <= MOST_MS,
        "first_token_cost_ms_median": report["first_token_cost_ms_median"] <= MOST_FIRST_MS,
        "gain": report["gain"] >= LEAST_GAIN,
    }
    given.output.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))
    return not all(report["bars"].values())


def questions(count: int) -> list[list[dict[str, str]]]:
    """Conversations of the bundled test split, up to their last answers."""
    lines = (ROOT / "data/bank/test.jsonl").read_text().splitlines()
    rows = [json.loads(line)["messages"][:-1] for line in lines]
    return [rows[i % len(rows)] for i in range(count)]


async def compare(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    url: str,
    bodies: Sequence[dict[str, Any]],
) -> tuple[list[float], list[float]]:
    """Seconds that the server adds to the first token, and to the whole answer, of each request."""
    import aiohttp

    firsts, wholes = [], []
    async with aiohttp.ClientSession() as session:
        for index, (prompt, body) in enumerate(zip(prompts, bodies, strict=True)):
            times = {}
            for way in ("bare", "served") if index % 2 else ("served", "bare"):
                if way == "bare":
                    times[way] = await ask_engine(engine, prompt, sampling)
                else:
                    answer = await ask(session, f"{url}/chat/completions", body)
                    times[way] = answer.first, answer.last
            firsts.append(times["served"][0] - times["bare"][0])
            wholes.append(times["served"][1] - times["bare"][1])
    return firsts, wholes


async def ask_engine(
    engine: Engine, prompt: Sequence[int], sampling: Sampling
) -> tuple[float, float]:
    """Seconds to the first token and to the last."""
    begin = time.perf_counter()
    first = None
    async for _ in engine.generate(prompt, sampling):
        first = first or time.perf_counter() - begin
    assert first
    return first, time.perf_counter() - begin


def tokens_per_second(level: Level) -> float:
    return sum(answer.tokens for answer in level.answers) / level.seconds


if __name__ == "__main__":
    sys.exit(main())
