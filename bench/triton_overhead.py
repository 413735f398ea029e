"""What Triton adds to a request to the engine, over gRPC and over HTTP, on a CPU.

    python -m bench.triton_overhead artifacts/build --output bench/results/triton_overhead.json

artifacts/build: of `stage=build engine=triton`. The same prompt goes in turn to the engine in a
process of its own, as the server has it, and to Triton's model of token ids over gRPC and over
HTTP. Decoding is greedy, so that all answers are equal. What Triton adds is the median of the
differences of one turn. Threshold: 2 ms a request over gRPC. Other load on the machine affects the
results; the report has the load average.
"""

import asyncio
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from bench.origin import origin, parser_of
from pipeline.engines.base import Engine, Sampling
from pipeline.engines.description import Description
from pipeline.engines.kserve.engine import KServeEngine
from pipeline.engines.opening import open_engine
from pipeline.engines.triton.arguments import TOKENS
from pipeline.engines.triton.engine import TritonEngine
from pipeline.engines.triton.repository import REPOSITORY, VERSION

MOST_MS = 2.0
PROMPT = list(range(5, 37))
PACKAGES = ("grpcio", "httpx", "onnxruntime", "transformers")


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("engine", type=Path)
    parser.add_argument("--turns", type=int, default=200)
    parser.add_argument("--answers", default="1,16,64", help="tokens")
    given = parser.parse_args()
    before = os.getloadavg()[0]
    measured = asyncio.run(measure(given.engine, given.turns, given.answers))
    command = " ".join(["python -m bench.triton_overhead", *sys.argv[1:]])
    result = {
        **origin(command, PACKAGES, given.commit),
        "triton": "2.51.0 of nvidia-pytriton 0.7.0",
        "load_average": [round(before, 1), round(os.getloadavg()[0], 1)],
        "most_ms": MOST_MS,
        "answers": measured,
    }
    given.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(measured, indent=1))
    return 0 if all(row["grpc_adds_ms"] <= MOST_MS for row in measured) else 1


async def measure(folder: Path, turns: int, answers: str) -> list[dict[str, Any]]:
    description = Description.read(folder)
    model = description.settings["model"] + TOKENS
    alone = open_engine(folder / REPOSITORY / model / VERSION / "engine", max_queue=9).engine
    grpc = open_engine(folder, max_queue=9).engine
    assert isinstance(grpc, TritonEngine)
    url = f"http://127.0.0.1:{grpc.server.http}/v2"
    http = KServeEngine(url, model, {}, description, max_queue=9)
    ways: dict[str, Engine] = {"alone": alone, "grpc": grpc, "http": http}
    try:
        found = [await of_length(ways, int(n), turns) for n in answers.split(",")]
    finally:
        for engine in ways.values():
            engine.close()
        await asyncio.sleep(0)
    return found


async def of_length(ways: dict[str, Engine], tokens: int, turns: int) -> dict[str, Any]:
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(turns + 10):
        said = set()
        for name, engine in ways.items():
            begin = time.perf_counter()
            how = Sampling(tokens, temperature=0)
            ids = [t.id async for ts in engine.generate(PROMPT, how) for t in ts]
            if turn >= 10:  # the first ones open connections
                times[name].append(1000 * (time.perf_counter() - begin))
            said.add(tuple(ids))
        assert len(said) == 1, "the answers differ"
    adds = {
        name: [there - here for there, here in zip(times[name], times["alone"], strict=True)]
        for name in ways
    }
    return {
        "tokens": tokens,
        "alone_ms": round(statistics.median(times["alone"]), 2),
        **{f"{n}_adds_ms": round(statistics.median(adds[n]), 2) for n in ("grpc", "http")},
        **{f"least_{n}_ms": round(min(times[n]), 2) for n in ways},
    }


if __name__ == "__main__":
    sys.exit(main())
