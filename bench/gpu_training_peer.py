"""The baseline of gpu_training.py: HF transformers and PEFT with torch.compile on one GPU.

    python bench/gpu_training_peer.py CASE … --output bench/results/gpu_training_peer.json

The shape, sequence and global batch are the same. Weights and optimizer are those that its users
choose: bfloat16, scaled-dot-product attention, fused AdamW. A case is METHOD-bN[-lN]: N rows per
micro-batch, N layers. METHOD is lora, sft (weights, gradients and AdamW in bfloat16) or mixed (a
full fine-tune with float32 weights under autocast, as in transformers' Trainer with bf16=True, the
same precision as ours).
"""

import gc
import json
import re
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.origin import origin, parser_of

PACKAGES = ("torch", "transformers", "peft")
VOCABULARY, SEQUENCE, GLOBAL_BATCH = 128_256, 4096, 8
STEPS, WARM_UP = 8, 2
CASE = re.compile(r"(lora|sft|mixed)-b(\d+)(?:-l(\d+))?$")


def run(case: str) -> dict[str, Any]:
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    method, size, layers = CASE.match(case).groups()  # type: ignore[union-attr]
    rows, layers = int(size), int(layers or 32)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=8192,
        rope_theta=500_000.0,
        attn_implementation="sdpa",
    )
    torch.cuda.reset_peak_memory_stats()
    torch.set_default_dtype(torch.float32 if method == "mixed" else torch.bfloat16)
    with torch.device("cuda"):
        model = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    if method == "lora":
        adapter = LoraConfig(
            r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        model = get_peft_model(model, adapter)
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    compiled = torch.compile(model)
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    seconds = []
    for _ in range(STEPS):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(GLOBAL_BATCH // rows):
            ids = torch.randint(0, VOCABULARY, (rows, SEQUENCE), device="cuda")
            with torch.autocast("cuda", torch.bfloat16, enabled=method == "mixed"):
                loss = compiled(input_ids=ids, labels=ids).loss / (GLOBAL_BATCH // rows)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    speeds = [GLOBAL_BATCH * SEQUENCE / s for s in seconds[WARM_UP:]]
    return {
        "tokens_per_second_a_gpu": round(statistics.median(speeds)),
        "readings": [round(s) for s in speeds],
        "peak_memory_gib": round(torch.cuda.max_memory_allocated() / 2**30, 1),
    }


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("cases", nargs="+", metavar="CASE")
    arguments = parser.parse_args()
    command = " ".join(["python bench/gpu_training_peer.py", *arguments.cases])
    results: dict[str, Any] = {}
    for case in arguments.cases:
        try:
            results[case] = run(case)
        except torch.OutOfMemoryError as error:
            results[case] = {"error": str(error)[:300]}
        gc.collect()
        torch.compiler.reset()
        torch.cuda.empty_cache()
        print(case, json.dumps(results[case]), flush=True)
        document = {
            **origin(command, PACKAGES, arguments.commit),
            "sequence": SEQUENCE,
            "global_batch": GLOBAL_BATCH,
            "cases": results,
        }
        arguments.output.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
