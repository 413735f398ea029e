"""The hf engine on a GPU: tokens per second alone and at once, and how near its logits are.

    python -m bench.hf_engine bench/results/hf_engine.json

A random model of Llama 3's 8 B shape in bfloat16, prompts of 1,000 tokens, answers of 200, greedy,
through the batching engine without HTTP. Each way runs in a process of its own:

plain    a mask, kernel by kernel, tokens chosen on the host: every version until this one
graphs   flash attention over a flat cache, CUDA graphs, tokens chosen on the GPU
fused    also compiled small operations and merged products
"""

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench.llama_8b import VOCABULARY, write_random
from bench.origin import origin

WAYS = ("plain", "graphs", "fused")
PACKAGES = ("torch", "transformers", "triton")
PROMPT, ANSWER, LENGTH = 1000, 200, 1280


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--model", type=Path, default=Path("/tmp/llama-8b-random"))
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--at-once", default="1,16,128")
    parser.add_argument("--commit", help="of the source tree, if git is not available")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # the way of this process
    given = parser.parse_args()
    if given.one:
        print(json.dumps(_measure(given)))
        return 0
    if not given.model.is_dir():
        write_random(given.model)
    found: dict[str, Any] = {}
    for way in given.ways.split(","):
        command = [sys.executable, "-m", "bench.hf_engine", *sys.argv[1:], "--one", way]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            print(f"{way}: exit code {done.returncode}", file=sys.stderr)
            continue
        found[way] = json.loads(done.stdout.splitlines()[-1])
        print(f"{way}: {json.dumps(found[way])}", file=sys.stderr)
    result = {
        **origin(" ".join(["python -m bench.hf_engine", *sys.argv[1:]]), PACKAGES, given.commit),
        "prompt_tokens": PROMPT,
        "answer_tokens": ANSWER,
        "ways": found,
    }
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(json.dumps(result, indent=1) + "\n")
    return 0


def _measure(given: argparse.Namespace) -> dict[str, Any]:
    import torch

    from pipeline.engines.batching.scheduler import BatchingEngine
    from pipeline.engines.hf import flash, graphs
    from pipeline.engines.hf.session import HfSession

    way, loads = given.one, [int(n) for n in given.at_once.split(",")]
    if way == "plain":
        flash.usable = lambda model: False
    if way != "fused":
        graphs.fuse = lambda model: None
    begin = time.perf_counter()
    session = HfSession(given.model, max(loads), LENGTH)
    found: dict[str, Any] = {"start_seconds": round(time.perf_counter() - begin, 1)}
    found["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 1)
    engine = BatchingEngine(session, max_input_len=PROMPT, max_queue=1024)
    asyncio.run(_load(engine, 2, 2))  # warm up
    for number in loads:
        requests = number if way == "plain" and number > 16 else max(2, min(3 * number, 256))
        found[f"at {number}"] = asyncio.run(_load(engine, number, requests))
    engine.close()
    return found


async def _load(engine: Any, at_once: int, requests: int) -> dict[str, float]:
    from pipeline.engines.base import Sampling

    draw, room = random.Random(0), asyncio.Semaphore(at_once)
    firsts: list[float] = []
    gaps: list[float] = []

    async def one() -> None:
        prompt = [draw.randrange(1000, VOCABULARY - 1000) for _ in range(PROMPT)]
        async with room:
            begin, times = time.perf_counter(), []
            async for tokens in engine.generate(prompt, Sampling(ANSWER, temperature=0)):
                times += [time.perf_counter()] * len(tokens)
            firsts.append(times[0] - begin)
            gaps.append((times[-1] - times[0]) / (len(times) - 1))

    begin = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(requests)))
    seconds = time.perf_counter() - begin
    return {
        "tokens_per_second": round(requests * ANSWER / seconds, 1),
        "first_token_ms": round(1000 * statistics.median(firsts), 1),
        "token_ms": round(1000 * statistics.median(gaps), 2),
        "requests": requests,
    }


if __name__ == "__main__":
    sys.exit(main())
