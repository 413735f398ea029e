"""Our server compared with `vllm serve`, one after the other on one GPU.

    python -m bench.serving_vllm bench/results/serving_vllm.json
    python -m bench.serving_vllm bench/results/serving_hf.json --engine hf

Creates a random model of Llama 3's 8 B shape, serves it with each, and sends concurrent requests:
prompts of 1000 random token ids, 200 tokens of output, greedy, streamed. No output ends early,
since the model never generates its end token; the counted tokens confirm that. Thresholds with the
vLLM engine: our throughput is at least 98 % of vLLM's, our median time to first token at most 5 ms
longer. With the hf engine: our throughput is at least 60 %.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from bench.llama_8b import VOCABULARY, write_random
from bench.origin import ROOT, origin

LEAST_THROUGHPUT = {"vllm": 0.98, "hf": 0.6}  # of vLLM's, by our engine
MOST_FIRST_MS = {"vllm": 5.0, "hf": float("inf")}  # above vLLM's
START_SECONDS = 420
PACKAGES = ("vllm", "torch", "transformers", "fastapi", "uvicorn", "uvloop", "pydantic")


class Timed(NamedTuple):
    """One response: its tokens, and seconds from the request to the first and the last."""

    tokens: int
    first: float
    last: float


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--model", type=Path, default=Path("/tmp/llama-8b-random"))
    parser.add_argument("--requests", type=int, default=512)
    parser.add_argument(
        "--rounds", type=int, default=2, help="number of requests in each run of each server"
    )
    parser.add_argument("--concurrency", type=int, default=128)
    parser.add_argument("--prompt", type=int, default=1000, help="tokens")
    parser.add_argument("--answer", type=int, default=200, help="tokens")
    parser.add_argument("--max-model-len", type=int, default=2048)
    parser.add_argument("--max-num-seqs", type=int, default=256)
    parser.add_argument("--engine", default="vllm", choices=LEAST_THROUGHPUT, help="of our server")
    parser.add_argument("--vllm-path", help="PYTHONPATH of vLLM, if it is not in this environment")
    parser.add_argument("--order", default="vllm,ours", help="the server to measure first")
    parser.add_argument("--commit", help="of the source tree, if git is not available")
    given = parser.parse_args()
    begin = time.monotonic()
    if given.model == parser.get_default("model"):
        write_random(given.model)
    print(f"model ready after {time.monotonic() - begin:.0f} s", file=sys.stderr)
    found = {name: _measure(name, given) for name in given.order.split(",")}
    ours, theirs = found["ours"], found["vllm"]
    ratio = ours["output_tokens_per_second"] / theirs["output_tokens_per_second"]
    later = ours["first_token_ms"]["median"] - theirs["first_token_ms"]["median"]
    result = {
        **origin(" ".join(["python -m bench.serving_vllm", *sys.argv[1:]]), PACKAGES, given.commit),
        "load": {
            "concurrency": given.concurrency,
            "requests": given.requests * given.rounds,
            "prompt_tokens": given.prompt,
            "answer_tokens": given.answer,
        },
        "vllm serve": theirs,
        "ours": ours,
        "throughput_ratio": round(ratio, 4),
        "first_token_later_ms": round(later, 2),
        "met": ratio >= LEAST_THROUGHPUT[given.engine] and later <= MOST_FIRST_MS[given.engine],
    }
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    return 0 if result["met"] else 1


def _measure(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """Start a server, warm it up, and measure it under load."""
    command = _command(name, given)
    log = given.output.with_suffix(f".{name}.log")
    begin = time.monotonic()
    path = {"PYTHONPATH": given.vllm_path} if given.vllm_path and name == "vllm" else {}
    with _server(command, log, path) as url:
        print(f"{name}: ready after {time.monotonic() - begin:.0f} s", file=sys.stderr)
        asyncio.run(_load(url, given, requests=given.concurrency, seed=0))
        rounds = [
            asyncio.run(_load(url, given, requests=given.requests, seed=number))
            for number in range(1, given.rounds + 1)
        ]
    answers = [answer for _, these in rounds for answer in these]
    seconds = sum(seconds for seconds, _ in rounds)
    tokens = sum(answer.tokens for answer in answers)
    if tokens != len(answers) * given.answer:
        raise SystemExit(f"{name} generated {tokens} tokens for {len(answers)} requests: see {log}")
    figures = {
        "server_command": " ".join(command),
        "output_tokens_per_second": round(tokens / seconds, 1),
        "rounds_tokens_per_second": [
            round(sum(a.tokens for a in these) / took, 1) for took, these in rounds
        ],
        "first_token_ms": _spread([1000 * a.first for a in answers]),
        "per_token_ms": _spread([1000 * (a.last - a.first) / (a.tokens - 1) for a in answers]),
        "request_ms": _spread([1000 * a.last for a in answers]),
    }
    print(f"{name}: {json.dumps(figures)}", file=sys.stderr)
    return figures


def _command(name: str, given: argparse.Namespace) -> list[str]:
    """The two servers with the same engine arguments."""
    shared = {"max_model_len": given.max_model_len, "max_num_seqs": given.max_num_seqs}
    if name == "vllm":
        flags = [f"--{k.replace('_', '-')}={v}" for k, v in shared.items()]
        module = ["-m", "vllm.entrypoints.cli.main", "serve", str(given.model)]
        more = ["--served-model-name=model", "--host=127.0.0.1", "--port=8101"]
        return [sys.executable, *module, *more, *flags, "--kv-cache-dtype=auto"]
    module = ["-m", "pipeline.serving", "--engine", str(given.model), "--model=model"]
    sizes = [
        f"engine.max_seq_len={given.max_model_len}",
        f"engine.max_input_len={given.max_model_len - 1}",
        f"engine.max_batch_size={given.max_num_seqs}",
    ]
    return [sys.executable, *module, f"engine.name={given.engine}", *sizes, "serve.port=8101"]


@contextmanager
def _server(command: Sequence[str], log: Path, environment: Mapping[str, str]) -> Iterator[str]:
    """A server on port 8101 while the block runs."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **environment},
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        url = "http://127.0.0.1:8101"
        is_vllm = "vllm.entrypoints.cli.main" in command
        health = f"{url}/health" if is_vllm else f"{url}/health/ready"
        while not _answers(health):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the server did not start: {log.read_text()[-3000:]}")
            time.sleep(0.5)
        yield f"{url}/v1/completions"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return False


async def _load(
    url: str, given: argparse.Namespace, *, requests: int, seed: int
) -> tuple[float, list[Timed]]:
    """Send the requests, `concurrency` at a time. Returns the seconds, and each response."""
    import aiohttp

    chance = random.Random(seed)
    prompts = [
        [chance.randrange(10, VOCABULARY) for _ in range(given.prompt)] for _ in range(requests)
    ]
    left, answers = iter(prompts), []
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=given.concurrency),
        timeout=aiohttp.ClientTimeout(total=300),
    ) as session:

        async def work() -> None:
            for prompt in left:
                answers.append(await _ask(session, url, prompt, given.answer))

        begin = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(given.concurrency)))
        return time.perf_counter() - begin, answers


async def _ask(session: Any, url: str, prompt: list[int], tokens: int) -> Timed:
    body = {
        "model": "model",
        "prompt": prompt,
        "max_tokens": tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    begin = time.perf_counter()
    first = last = 0.0
    counted = 0
    async with session.post(url, json=body) as response:
        if response.status != 200:
            raise SystemExit(f"{url} returned {response.status}: {await response.text()}")
        async for line in response.content:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if "error" in event:
                raise SystemExit(f"{url} failed in its stream: {event['error']}")
            if event.get("usage"):
                counted = event["usage"]["completion_tokens"]
            if event["choices"]:
                last = time.perf_counter() - begin
                first = first or last
    return Timed(counted, first, last)


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 3),
        "p90": round(statistics.quantiles(values, n=10)[-1], 3),
        "p99": round(statistics.quantiles(values, n=100)[-1], 3),
    }


if __name__ == "__main__":
    sys.exit(main())
