"""The time to the first token of a prompt whose system prompt was read before.

    python -m bench.prefix_cache bench/results/prefix_cache.json

A Llama of random weights answers in the engines hf and onnxruntime. Pairs of requests, one with a
system prompt of 200 tokens that is new and one with the same system prompt and another question,
come one after the other, so that other work on the machine concerns both. Threshold: the median of
the second is at most 30 % of that of the first.
"""

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.origin import origin
from pipeline.engines.base import Sampling
from pipeline.engines.batching.scheduler import BatchingEngine

PACKAGES = ("torch", "transformers", "onnxruntime", "onnxruntime-genai")
SYSTEM, QUESTION, PAIRS = 200, 12, 15
MOST_SHARE = 0.3
SIZES = {
    "vocab_size": 4096,
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 8,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "max_position_embeddings": 1024,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("output", type=Path)
    given = parser.parse_args()
    command = " ".join(["python -m bench.prefix_cache", *sys.argv[1:]])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder / "hf")
        engines = {"hf": asyncio.run(measure(hf_session(folder / "hf")))}
        engines["onnxruntime"] = asyncio.run(measure(onnx_session(folder)))
    report: dict[str, Any] = {
        **origin(command, PACKAGES),
        "model": SIZES,
        "system_prompt_tokens": SYSTEM,
        "question_tokens": QUESTION,
        "pairs": PAIRS,
        "engines": engines,
        "met": all(one["share"] <= MOST_SHARE for one in engines.values()),
    }
    given.output.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))
    return not report["met"]


def make_model(folder: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    LlamaForCausalLM(LlamaConfig(**SIZES)).save_pretrained(folder)


def hf_session(folder: Path) -> Any:
    from pipeline.engines.hf.session import HfSession

    return HfSession(folder, 4, 512)


def onnx_session(folder: Path) -> Any:
    """The same model as a graph in float32."""
    from onnxruntime_genai.models.builder import create_model

    from pipeline.engines.onnxruntime.session import DecoderSession
    from tests.unit.model_folders import make_model_folder

    tokenizer = make_model_folder(folder / "demo", "demo")
    for file in tokenizer.glob("*token*"):
        (folder / "hf" / file.name).write_bytes(file.read_bytes())
    create_model("", str(folder / "hf"), str(folder / "onnx"), "fp32", "cpu", str(folder / "cache"))
    return DecoderSession(folder / "onnx", 4, 512)


async def measure(model: Any) -> dict[str, float]:
    """Medians of milliseconds to the first token, the first and the second time."""
    engine = BatchingEngine(model, max_input_len=500, max_queue=4)
    chance = random.Random(1)
    first, second = [], []

    def tokens(count: int) -> list[int]:
        return [chance.randrange(10, SIZES["vocab_size"]) for _ in range(count)]

    async def time_of(prompt: list[int], cached: int) -> float:
        begin = time.perf_counter()
        stream = engine.generate(prompt, Sampling(1, temperature=0))
        await anext(stream)
        took = 1000 * (time.perf_counter() - begin)
        assert stream.cached_tokens == cached
        return took

    try:
        await time_of(tokens(SYSTEM), 0)  # warm-up
        for _ in range(PAIRS):
            system = tokens(SYSTEM)
            first.append(await time_of([*system, *tokens(QUESTION)], 0))
            second.append(await time_of([*system, *tokens(QUESTION)], SYSTEM))
    finally:
        engine.close()
    medians = statistics.median(first), statistics.median(second)
    return {
        "first_time_ms": round(medians[0], 2),
        "again_ms": round(medians[1], 2),
        "share": round(medians[1] / medians[0], 3),
    }


if __name__ == "__main__":
    sys.exit(main())
