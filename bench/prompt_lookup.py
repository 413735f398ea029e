"""What prompt lookup gains, and where it does not pay: tokens/s with it and without.

    python -m tools.smollm2 models/SmolLM2-135M-Instruct
    python -m bench.prompt_lookup models/SmolLM2-135M-Instruct \\
        --output bench/results/prompt_lookup.json

The model answers in the engines hf (float32) and onnxruntime (int8). Task `repetitive`: it is to
return a text of its prompt with a change, so that most of the answer stands in the prompt. Task
`ordinary`: questions of the bank. Each is asked greedily, one request at a time and four at a time,
without and with drafts, one after the other in each round, so that other work on the machine
concerns both. Tokens that differ are counted: sums in another order decide between tokens that are
equally likely to the last bit, as they do between batches.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.origin import ROOT, origin
from pipeline.engines.base import Sampling
from pipeline.engines.batching.scheduler import BatchingEngine
from pipeline.models.chat.renderer import Chat

PACKAGES = ("torch", "transformers", "onnxruntime", "onnxruntime-genai")
TOKENS, DRAFT, SLOTS = 48, 8, 4
Answers = list[list[int]]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    chat = Chat.load(given.model)
    tasks = {"repetitive": repetitive(), "ordinary": ordinary()}
    prompts = {
        task: [chat.prompt([{"role": "user", "content": text}]) for text in texts]
        for task, texts in tasks.items()
    }
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, opened in (("hf", hf_session), ("onnxruntime", onnx_session)):
            session = opened(given.model, Path(scratch))
            stops = frozenset(chat.stop_ids)
            found[name] = {
                f"{task}, {at_once} at a time": measure(
                    session, asked, stops, at_once, given.rounds
                )
                for task, asked in prompts.items()
                for at_once in (1, SLOTS)
            }
            del session
    report: dict[str, Any] = {
        **origin(" ".join(["python -m bench.prompt_lookup", *sys.argv[1:]]), PACKAGES),
        "model": given.model.name,
        "answer_tokens_at_most": TOKENS,
        "draft_tokens_at_most": DRAFT,
        "rounds": given.rounds,
        "engines": found,
    }
    given.output.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))
    return 0


def repetitive() -> list[str]:
    """Texts that are to be returned."""
    passages = (ROOT / "data/general/passages.txt").read_text().split("\n\n")[:SLOTS]
    begin = "Return this text word for word, and change nothing:\n\n"
    return [begin + " ".join(passage.split()[:60]) for passage in passages]


def ordinary() -> list[str]:
    """Questions of the bank's test split, of different subjects."""
    lines = (ROOT / "data/bank/test.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines[:: len(lines) // SLOTS][:SLOTS]]
    return [next(m["content"] for m in row["messages"] if m["role"] == "user") for row in rows]


def hf_session(model: Path, scratch: Path) -> Any:
    from pipeline.engines.hf.session import HfSession

    return HfSession(model, SLOTS, 512)


def onnx_session(model: Path, scratch: Path) -> Any:
    from pipeline.engines.onnxruntime import build
    from pipeline.engines.onnxruntime.session import DecoderSession

    out = scratch / "engine"
    out.mkdir()
    build.build(model, out, "int8", scratch / "build")
    return DecoderSession(out, SLOTS, 512)


def measure(
    session: Any, prompts: Answers, stops: frozenset[int], at_once: int, rounds: int
) -> dict[str, Any]:
    """Medians of tokens/s without and with drafts, and how many drafted tokens were right."""
    speeds: dict[int, list[float]] = {0: [], DRAFT: []}
    answers: dict[int, Answers] = {}
    asyncio.run(answered(session, prompts[:1], stops, 1, DRAFT))  # warm-up
    for _ in range(rounds):
        for most in speeds:
            speed, answers[most], drafts = asyncio.run(
                answered(session, prompts, stops, at_once, most)
            )
            speeds[most].append(speed)
    print(f"{at_once} at a time: {speeds}", file=sys.stderr, flush=True)
    plain, fast = (statistics.median(speeds[most]) for most in (0, DRAFT))
    ratios = [b / a for a, b in zip(speeds[0], speeds[DRAFT], strict=True)]
    pairs = list(zip(answers[0], answers[DRAFT], strict=True))
    return {
        "plain_tokens_per_second": round(plain, 1),
        "lookup_tokens_per_second": round(fast, 1),
        "speed_up": round(statistics.median(ratios), 2),
        "speed_up_least_and_most": [round(min(ratios), 2), round(max(ratios), 2)],
        "tokens": sum(map(len, answers[0])),
        "drafted": drafts[0],
        "accepted": drafts[1],
        "acceptance": round(drafts[1] / drafts[0], 3) if drafts[0] else None,
        "answers_that_differ": sum(a != b for a, b in pairs),
    }


async def answered(
    session: Any, prompts: Answers, stops: frozenset[int], at_once: int, most: int
) -> tuple[float, Answers, Sequence[int]]:
    """Tokens/s after each first token, the answers, and the tokens drafted and right."""
    engine = BatchingEngine(session, max_input_len=400, max_queue=9, speculative_tokens=most)
    drafts = [0, 0]

    async def read(prompt: list[int]) -> tuple[list[int], float]:
        stream = engine.generate(prompt, Sampling(TOKENS, temperature=0, stop_ids=stops))
        found = [token.id for token in await anext(stream)]
        begin = time.perf_counter()
        found += [token.id async for tokens in stream for token in tokens]
        took = time.perf_counter() - begin
        if stream.drafts:
            drafts[:] = [a + b for a, b in zip(drafts, stream.drafts, strict=True)]
        return found, took

    try:
        answers, seconds = [], 0.0
        for first in range(0, len(prompts), at_once):
            group = await asyncio.gather(*map(read, prompts[first : first + at_once]))
            answers += [found for found, _ in group]
            seconds += max(took for _, took in group)
    finally:
        engine.close()
    return sum(len(found) - 1 for found in answers) / seconds, answers, drafts


if __name__ == "__main__":
    sys.exit(main())
