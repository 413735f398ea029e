"""How long a newcomer waits behind a client that fills the engine's queue, in steps of the engine.

    python -m bench.serving_turns bench/results/serving_turns.json

One client asks for 256 answers of 64 tokens at once, as 16 requests of 16 answers each. When 16 of
them fill the engine's slots, another client asks for one. The model has no weights, so the figure
is a number of steps and not a time. Threshold: two answers' steps.
"""

import argparse
import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from bench.origin import origin
from pipeline.engines.base import Client, Sampling
from pipeline.engines.batching.scheduler import BatchingEngine
from tests.unit.serving.fake_models import ListModel, mix

SLOTS, ANSWERS, TOKENS = 16, 256, 64
MOST_STEPS = 2 * TOKENS


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("output", type=Path)
    given = parser.parse_args()
    command = " ".join(["python -m bench.serving_turns", *sys.argv[1:]])
    clients = {
        "another address": Client("two", "two:1"),
        "another connection of the address": Client("one", "one:2"),
        "the same connection": Client("one", "one:1"),
    }
    steps = {name: asyncio.run(steps_until_first(client)) for name, client in clients.items()}
    fair = [steps["another address"], steps["another connection of the address"]]
    report: dict[str, Any] = {
        **origin(command, ()),
        "slots": SLOTS,
        "answers_of_the_first_client": ANSWERS,
        "tokens_each": TOKENS,
        "steps_until_the_first_token": steps,
        "met": max(fair) <= MOST_STEPS,
    }
    given.output.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))
    return not report["met"]


async def steps_until_first(newcomer: Client) -> int:
    """Steps of the engine before the newcomer's first token, when the slots are taken."""
    model = ListModel(mix, slots=SLOTS, max_seq_len=128)
    engine = BatchingEngine(model, max_input_len=60, max_queue=2 * ANSWERS)
    first = Client("one", "one:1")
    model.gated = True
    try:
        flood = [
            engine.generate([1, i], Sampling(TOKENS, temperature=0, client=first))
            for i in range(ANSWERS)
        ]
        while engine.load().running < SLOTS:
            await asyncio.sleep(0.001)
        single = engine.generate([300], Sampling(1, temperature=0, client=newcomer))
        model.gate.release(TOKENS * ANSWERS)
        await anext(single)
        for stream in flood:
            stream.cancel()
        return len(model.batches)
    finally:
        model.gated = False
        model.gate.release(TOKENS * ANSWERS)
        engine.close()


if __name__ == "__main__":
    sys.exit(main())
