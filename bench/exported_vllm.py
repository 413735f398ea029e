"""The exported FP8 checkpoint in vLLM: its tokens compared with PyTorch's, its speed with BF16's.

    python -m bench.exported_vllm reference /tmp/reference.json     # needs ModelOpt
    python -m bench.exported_vllm compare /tmp/reference.json bench/results/exported_vllm.json

`reference` generates greedily with the fake-quantized model in PyTorch. `compare` runs on a GPU
with vLLM: vLLM generates from artifacts/export/hf, once freely and once with the reference's tokens
as input (teacher forcing). Then it measures vLLM offline at Llama 3's 8 B shape with dummy weights,
in bfloat16 and FP8. Thresholds: the likeliest token is the same at 98 % of the positions or more,
and FP8 has at least 1.3 times the tokens per second.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.llama_8b import VOCABULARY, write_shape
from bench.origin import ROOT, origin

LEAST_AGREEMENT = 0.98
LEAST_SPEEDUP = 1.3
NEW_TOKENS = 64
PACKAGES = ("vllm", "torch", "transformers", "nvidia-modelopt")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--commit", help="of the source tree, if git is not available")
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("reference")
    making.add_argument("output", type=Path)
    making.add_argument("--artifacts", type=Path, default=ROOT / "artifacts")
    making.add_argument("--questions", type=int, default=150)
    comparing = commands.add_parser("compare")
    comparing.add_argument("reference", type=Path)
    comparing.add_argument("output", type=Path)
    comparing.add_argument("--checkpoint", type=Path, default=ROOT / "artifacts" / "export" / "hf")
    comparing.add_argument("--requests", type=int, default=600)
    tokens = commands.add_parser("tokens", help="one measurement, in a separate process")
    tokens.add_argument("checkpoint", type=Path)
    tokens.add_argument("reference", type=Path)
    speed = commands.add_parser("speed", help="another one")
    speed.add_argument("folder", type=Path)
    speed.add_argument("requests", type=int)
    given = parser.parse_args()
    if given.command == "reference":
        given.output.write_text(json.dumps(make_reference(given.artifacts, given.questions)))
        return 0
    if given.command == "tokens":
        print(json.dumps(compare_tokens(given.checkpoint, json.loads(given.reference.read_text()))))
        return 0
    if given.command == "speed":
        print(json.dumps(measure_speed(given.folder, given.requests)))
        return 0
    result = compare(given)
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    return 0 if result["met"] else 1


def make_reference(artifacts: Path, questions: int) -> list[dict[str, list[int]]]:
    """Prompts of the test split, with the fake-quantized FP8 model's greedy answers."""
    from pipeline.data.dataset import read_split
    from pipeline.models import hf_model
    from pipeline.models.chat.renderer import Chat
    from pipeline.optimization import ptq as modelopt

    folder = artifacts / "quantize" / "fp8"
    model = modelopt.load(folder).float()
    modelopt.fold_weights(model)
    stops = Chat.load(folder).stop_ids
    rows = read_split(artifacts / "prepare", "test")[:questions]
    found = []
    for row in rows:
        prompt = list(row.prompt_ids or ())
        answer = hf_model.greedy(model, prompt, max_new_tokens=NEW_TOKENS, stop_ids=stops)
        found.append({"prompt": prompt, "answer": answer, "stops": list(stops)})
    return found


def measured(*arguments: Any) -> Any:
    """The output of this script as a child process, because vLLM holds a GPU until it ends."""
    command = [sys.executable, "-m", "bench.exported_vllm", *map(str, arguments)]
    answer = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(answer.stdout.splitlines()[-1])


def compare(given: argparse.Namespace) -> dict[str, Any]:
    tokens = measured("tokens", given.checkpoint, given.reference.resolve())
    print(json.dumps(tokens), file=sys.stderr)
    with tempfile.TemporaryDirectory() as scratch:
        speeds = {}
        for name in ("bf16", "fp8"):
            folder = write_shape(Path(scratch, name), fp8=name == "fp8")
            speeds[name] = measured("speed", folder, given.requests)
    speedup = speeds["fp8"] / speeds["bf16"]
    command = " ".join(["python -m bench.exported_vllm", *sys.argv[1:]])
    return {
        **origin(command, PACKAGES, given.commit),
        "tokens": tokens,
        "output_tokens_per_second": speeds,
        "load": {"requests": given.requests, "prompt_tokens": 1000, "answer_tokens": 200},
        "speedup": round(speedup, 3),
        "met": tokens["teacher_forced"] >= LEAST_AGREEMENT and speedup >= LEAST_SPEEDUP,
    }


def compare_tokens(checkpoint: Path, reference: Sequence[dict[str, list[int]]]) -> dict[str, Any]:
    """How far vLLM agrees with the reference.

    Returns:
        teacher_forced: share of positions where vLLM's likeliest token, after the reference's
        tokens, is the reference's. free_running: share of positions where vLLM's own output has the
        same token. same_answers: share of outputs that are equal.
    """
    from vllm import LLM, SamplingParams
    from vllm.inputs import TokensPrompt

    engine = LLM(
        model=str(checkpoint), max_model_len=512, gpu_memory_utilization=0.3, enforce_eager=True
    )
    whole = [TokensPrompt(prompt_token_ids=r["prompt"] + r["answer"]) for r in reference]
    read = engine.generate(
        whole, SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=1, detokenize=False)
    )
    forced = []
    for expected, output in zip(reference, read, strict=True):
        places = output.prompt_logprobs[len(expected["prompt"]) :]
        for token, place in zip(expected["answer"], places, strict=True):
            forced.append(place[token].rank == 1)
    questions = [TokensPrompt(prompt_token_ids=r["prompt"]) for r in reference]
    how = [
        SamplingParams(
            max_tokens=NEW_TOKENS,
            temperature=0,
            stop_token_ids=r["stops"],
            ignore_eos=True,
            detokenize=False,
        )
        for r in reference
    ]
    free, same = [], []
    for expected, output in zip(reference, engine.generate(questions, how), strict=True):
        answer = list(output.outputs[0].token_ids)
        longest = max(len(answer), len(expected["answer"]))
        equal = sum(a == b for a, b in zip(answer, expected["answer"], strict=False))
        free += [1] * equal + [0] * (longest - equal)
        same.append(answer == expected["answer"])
    return {
        "answers": len(same),
        "positions": len(forced),
        "teacher_forced": round(sum(forced) / len(forced), 4),
        "free_running": round(sum(free) / len(free), 4),
        "same_answers": round(sum(same) / len(same), 4),
    }


def measure_speed(folder: Path, requests: int) -> float:
    """Output tokens per second of vLLM offline, 1000 tokens in and 200 out."""
    from vllm import LLM, SamplingParams
    from vllm.inputs import TokensPrompt

    engine = LLM(model=str(folder), load_format="dummy", max_model_len=2048)
    chance = random.Random(1)
    prompts = [
        TokensPrompt(prompt_token_ids=[chance.randrange(10, VOCABULARY) for _ in range(1000)])
        for _ in range(requests)
    ]
    how = SamplingParams(max_tokens=200, temperature=0, ignore_eos=True, detokenize=False)
    engine.generate(prompts[:64], how, use_tqdm=False)
    engine.reset_prefix_cache()
    begin = time.perf_counter()
    outputs = engine.generate(prompts, how, use_tqdm=False)
    seconds = time.perf_counter() - begin
    return round(sum(len(o.outputs[0].token_ids) for o in outputs) / seconds, 1)


if __name__ == "__main__":
    sys.exit(main())
