"""The figures behind the bounds of the proof of engines, on several models.

    python -m bench.proof_bounds [--model FOLDER ...] [--seeds 4]

Random models of three families with several seeds, sharp and flat, the bundled base model, and the
folders that are given (tools.smollm2 makes one). For each:

- engines: an ONNX Runtime engine of each precision, compared with PyTorch (models/divergence.py),
- damages: the same comparison of PyTorch with itself, damaged, which is the least that an engine
  with that damage would show.

A bound lies between the worst honest figure and the smallest that a damage shows; BOUNDS in
engines/onnxruntime/record.py says why. Models that the output has already are not measured again.
"""

import argparse
import json
import random
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import torch

from bench.origin import origin
from pipeline.core.paths import ROOT
from pipeline.engines.onnxruntime import build as onnxruntime
from pipeline.engines.onnxruntime.session import DecoderSession
from pipeline.models import hf_model
from pipeline.models.chat.renderer import Chat
from pipeline.models.divergence import Divergence, divergence
from pipeline.optimization import logit_probes, ptq

PACKAGES = ("torch", "transformers", "onnxruntime", "onnxruntime-genai", "nvidia-modelopt")
PRECISIONS = ("fp32", "int8", "int4")
FAMILIES = ("Llama", "Qwen2", "Mistral")
# The vocabulary is that of the bundled tokenizer: the engine's builder takes it from there.
SIZES = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 3,
         "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 2048,
         "max_position_embeddings": 256, "bos_token_id": 0, "eos_token_id": 1}  # fmt: skip
LENGTH = 96  # tokens of a row
Probes = list[tuple[list[int], list[int]]]


def random_model(folder: Path, family: str, seed: int, spread: float) -> Path:
    """spread: of the weights. 0.02 is what training begins with; 0.08 gives sharp predictions."""
    import transformers

    torch.manual_seed(seed)
    config = getattr(transformers, f"{family}Config")(
        **SIZES, initializer_range=spread, tie_word_embeddings=bool(seed % 2)
    )
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    for name, weight in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(weight, 0.5, 1.5)
        elif name.endswith("bias"):
            torch.nn.init.normal_(weight, 0, 10 * spread)
        elif seed % 3 == 2 and weight.dim() == 2:  # columns with outliers, as real models have
            weight.data[:, :: weight.shape[1] // 8] *= 6
    model.to(torch.bfloat16).save_pretrained(folder)
    Chat.load(ROOT / "data/base_model").save(folder)  # the builder reads a tokenizer
    return folder


def random_probes(vocabulary: int, seed: int) -> Probes:
    draw = random.Random(seed)
    rows = [[draw.randrange(vocabulary) for _ in range(LENGTH)] for _ in range(6)]
    return [(row, list(range(LENGTH))) for row in rows]


def text_probes(folder: Path) -> Probes:
    """Questions and answers of the bundled data; positions are those of the answers' tokens."""
    chat, probes = Chat.load(folder), []
    for line in (ROOT / "data/bank/test.jsonl").read_text().splitlines()[:12]:
        turns = json.loads(line)["messages"]
        rendered = chat.render(turns)
        at = [i for i, on in enumerate(rendered.mask[1:]) if on]
        probes.append((rendered.ids[:LENGTH], [i for i in at if i < LENGTH - 1]))
    return probes


def engines(folder: Path, probes: Probes, reference: torch.Tensor) -> dict[str, Any]:
    """int8 is made of the float32 graph, which is measured before it is removed."""
    found = {}
    for precision in ("int8", "int4"):
        with tempfile.TemporaryDirectory() as made:
            out = Path(made) / "engine"
            out.mkdir()
            exact = onnxruntime.build(folder, out, precision, Path(made) / "scratch")
            for name, place in (("fp32", exact), (precision, out)):
                if name not in found:
                    session = DecoderSession(place, slots=1, max_seq_len=LENGTH)
                    compared = onnxruntime.compare_with_torch(reference, session, probes)
                    del session
                    found[name] = compared
    return found


def figures(found: Divergence) -> dict[str, float]:
    return {"loss": found.loss, **asdict(found)}


Damage = Callable[[Any], None]


def damages(model: Any) -> Iterator[tuple[str, Damage]]:
    """Names of what can go wrong in a conversion, and how to do it to a model of transformers."""
    layers = model.model.layers

    def rotary(factor: float) -> Damage:
        def change(model: Any) -> None:
            frequencies = model.model.rotary_emb.inv_freq
            exponents = torch.arange(len(frequencies)) / len(frequencies)
            model.model.rotary_emb.inv_freq = frequencies * factor ** (-exponents)

        return change

    def swap(first: int, second: int) -> Damage:
        def change(model: Any) -> None:
            held = layers[first].state_dict()
            held = {name: tensor.clone() for name, tensor in held.items()}
            layers[first].load_state_dict(layers[second].state_dict())
            layers[second].load_state_dict(held)

        return change

    def scale(factor: float) -> Damage:
        def change(model: Any) -> None:
            for layer in layers:
                layer.mlp.down_proj.weight.data.mul_(factor)

        return change

    def transpose(model: Any) -> None:
        weight = layers[0].self_attn.o_proj.weight
        weight.data = weight.data.T.contiguous()

    def interleave(model: Any) -> None:
        weight = layers[0].self_attn.q_proj.weight
        heads = weight.data.reshape(model.config.num_attention_heads, 2, -1, weight.shape[1])
        weight.data = heads.transpose(1, 2).reshape(weight.shape).contiguous()

    def no_bias(model: Any) -> None:
        for layer in layers:
            for part in ("q_proj", "k_proj", "v_proj"):
                getattr(layer.self_attn, part).bias.data.zero_()

    def norm(model: Any) -> None:
        layers[-1].post_attention_layernorm.weight.data.fill_(1.0)

    def epsilon(factor: float) -> Damage:
        def change(model: Any) -> None:
            for module in model.modules():
                if hasattr(module, "variance_epsilon"):
                    module.variance_epsilon *= factor

        return change

    yield "rotary base, 10 times", rotary(10.0)
    yield "first two layers swapped", swap(0, 1)
    yield "down projections a fifth too large", scale(1.2)
    yield "output projection transposed", transpose
    yield "queries in the other rotary order", interleave
    yield "a norm's weight left out", norm
    yield "the norms' epsilon, 1000 times", epsilon(1000)
    if layers[0].self_attn.q_proj.bias is not None:
        yield "biases left out", no_bias


def damaged(model: Any, probes: Probes, reference: torch.Tensor) -> dict[str, Any]:
    """Each damage alone: the model is restored after it."""
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    frequencies = model.model.rotary_emb.inv_freq.clone()
    epsilons = {m: m.variance_epsilon for m in model.modules() if hasattr(m, "variance_epsilon")}
    found = {}
    for name in [name for name, _ in damages(model)]:
        dict(damages(model))[name](model)
        found[name] = figures(divergence(reference, logit_probes.logits_at(model, probes)))
        model.load_state_dict(kept)
        model.model.rotary_emb.inv_freq = frequencies.clone()
        for module, epsilon in epsilons.items():
            module.variance_epsilon = epsilon
    return found


def measure(name: str, folder: Path, probes: Probes) -> dict[str, Any]:
    model = hf_model.load_model(folder, dtype="float32")
    reference = logit_probes.logits_at(model, probes)
    found = damaged(model, probes, reference)
    del model
    return {"model": name, "engines": engines(folder, probes, reference), "damages": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, action="append", default=[])
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--out", type=Path, default=ROOT / "bench/results/proof_bounds.json")
    options = parser.parse_args()
    ptq.modelopt()  # before transformers, as the stages do
    rows = json.loads(options.out.read_text())["models"] if options.out.is_file() else []
    known = {row["model"] for row in rows}

    def add(name: str, folder: Path, probes: Probes) -> None:
        rows.append(measure(name, folder, probes))
        show(rows[-1])
        made = origin("python -m bench.proof_bounds", PACKAGES)
        content = {**made, "models": rows, "summary": summary(rows)}
        options.out.write_text(json.dumps(content, indent=1) + "\n")

    def add_real(folder: Path) -> None:
        if folder.name not in known:
            add(folder.name, folder, text_probes(folder))

    add_real(ROOT / "data/base_model")
    for family, seed in product(FAMILIES, range(options.seeds)):
        spread = 0.02 if seed % 2 else 0.08
        name = f"{family} {seed}, weights {spread}"
        if name not in known:
            with tempfile.TemporaryDirectory() as made:
                probes = random_probes(SIZES["vocab_size"], seed)
                add(name, random_model(Path(made), family, seed, spread), probes)
    for folder in options.model:
        add_real(folder)
    print(json.dumps(summary(rows), indent=1))


def show(row: dict[str, Any]) -> None:
    print(row["model"], flush=True)
    for kind in ("engines", "damages"):
        for name, found in row[kind].items():
            print(f"  {name:40} loss {found['loss']:.3g}  agreement {found['agreement']:.4f}")


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    worst = {
        precision: {
            "largest_loss": max(row["engines"][precision]["loss"] for row in rows),
            "smallest_agreement": min(row["engines"][precision]["agreement"] for row in rows),
        }
        for precision in PRECISIONS
    }
    names = dict.fromkeys(name for row in rows for name in row["damages"])
    least = {
        name: {
            "smallest_loss": min(r["damages"][name]["loss"] for r in rows if name in r["damages"]),
            "largest_agreement": max(
                r["damages"][name]["agreement"] for r in rows if name in r["damages"]
            ),
        }
        for name in names
    }
    return {"engines": worst, "damages": least}


if __name__ == "__main__":
    main()
