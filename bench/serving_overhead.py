"""Overhead of the server over the bare engine, and the gain from batching, on a CPU.

    python -m bench.serving_overhead artifacts/build bench/results/serving_overhead.json

Each question goes in turn to the engine alone, in this process, and to the same engine in a server,
complete and streamed, over loopback and including the client's work. The overhead is the median of
the differences. Then the server gets one and 16 requests at a time. Decoding is greedy up to the
limit of tokens, so that all outputs are equal. Thresholds: 3 ms per request, 5 ms to the first
token of a stream, 3 times the tokens per second. Other load on the machine affects the results; the
report has the load average at the start.
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

from pipeline.core.hardware import inspect_machine
from pipeline.core.paths import ROOT
from pipeline.engines.base import Engine, Sampling
from pipeline.engines.description import Description
from pipeline.engines.registry import open_runtime
from pipeline.models.chat.renderer import Chat
from pipeline.serving.benchmark.load_generator import Level, run_load, send_request
from pipeline.serving.server_process import running_server

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
        times = asyncio.run(compare(engine, prompts, sampling, server.url, bodies))
        engine.close()
        levels = {n: run_load(server.url, bodies, n) for n in (1, AT_ONCE)}
    speeds = {n: tokens_per_second(level) for n, level in levels.items()}
    report: dict[str, Any] = {
        "machine": {k: v for k, v in asdict(inspect_machine()).items() if k != "gpus"},
        "load_average_before": busy,
        "requests": given.requests,
        "answer_tokens": given.answer,
        "engine_ms_median": median_ms(times["bare"]),
        "cost_ms_median": cost_ms(times["whole"], times["bare"]),
        "streamed_cost_ms_median": cost_ms(times["streamed"], times["bare"]),
        "first_token_cost_ms_median": cost_ms(times["first"], times["bare first"]),
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
    """Conversations of the bundled test split, without their last turns."""
    lines = (ROOT / "data/bank/test.jsonl").read_text().splitlines()
    rows = [json.loads(line)["messages"][:-1] for line in lines]
    return [rows[i % len(rows)] for i in range(count)]


def median_ms(seconds: Sequence[float]) -> float:
    return round(1e3 * statistics.median(seconds), 2)


def cost_ms(served: Sequence[float], bare: Sequence[float]) -> float:
    return median_ms([ours - alone for ours, alone in zip(served, bare, strict=True)])


async def compare(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    url: str,
    bodies: Sequence[dict[str, Any]],
) -> dict[str, list[float]]:
    """Seconds of every request: by the engine alone, and served, complete and streamed."""
    import aiohttp

    path = f"{url}/chat/completions"
    times: dict[str, list[float]] = {
        name: [] for name in ("bare", "bare first", "whole", "streamed", "first")
    }
    async with aiohttp.ClientSession() as session:
        for prompt, body in zip(prompts, bodies, strict=True):
            first, last = await ask_engine(engine, prompt, sampling)
            times["bare first"].append(first)
            times["bare"].append(last)
            begin = time.perf_counter()
            async with session.post(path, json=body) as response:
                assert (await response.json())["usage"]["completion_tokens"] == sampling.max_tokens
            times["whole"].append(time.perf_counter() - begin)
            answer = await send_request(session, path, body)
            times["first"].append(answer.first)
            times["streamed"].append(answer.last)
    return times


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
