"""Engines of every family that can be imported answer as PyTorch does, also past their quirks."""

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from pipeline.core.errors import DataError
from pipeline.engines.base import Sampling
from pipeline.engines.batching.scheduler import BatchingEngine
from pipeline.engines.onnxruntime import build as onnxruntime
from pipeline.engines.onnxruntime.record import BOUNDS
from pipeline.engines.onnxruntime.session import DecoderSession
from pipeline.models import hf_model
from pipeline.models.architecture import read_shape
from pipeline.optimization import logit_probes
from tests.unit.model_folders import make_model_folder

VOCABULARY = 400
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 4,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama3": {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    | {"rope_scaling": LLAMA3_ROPE, "tie_word_embeddings": True},
    "qwen2": {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
    | {"tie_word_embeddings": False},
    "mistral": {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
    | {"sliding_window": None, "tie_word_embeddings": False},
}


def make_model(folder: Path, family: str) -> Path:
    make_model_folder(folder, "demo")
    (folder / "config.json").write_text(json.dumps(SIZES | FAMILIES[family]))
    random = np.random.default_rng(1)
    tensors = {
        name: random.normal(1 if "norm" in name else 0, 0.2, shape).astype(np.float32)
        for name, shape in read_shape(folder).tensors()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_answers_as_pytorch_does(tmp_path: Path, family: str) -> None:
    model, out = make_model(tmp_path / "model", family), tmp_path / "engine"
    out.mkdir()
    onnxruntime.build(model, out, "fp32", tmp_path / "scratch")
    session = DecoderSession(out, slots=3, max_seq_len=128)
    prompts = [list(range(5, 5 + length)) for length in (2, 20, 60)]
    probes = [(prompt, list(range(len(prompt)))) for prompt in prompts]
    reference = logit_probes.logits_at(hf_model.load_model(model, dtype="float32"), probes)
    proof = onnxruntime.compare_with_torch(reference, session, probes)
    assert proof["same_answers"] == 1
    assert proof["loss"] < BOUNDS["fp32"].loss / 100
    assert proof["cache_loss"] < 1e-9
    assert proof["positions"] == 82

    # A prompt read in parts, in another row, and moved, is the same prompt.
    prompt = prompts[-1]
    whole = session.prefill(0, prompt, 0)[-1]
    session.prefill(2, prompt[:23], 0)
    parts = session.prefill(2, prompt[23:], 23)[-1]
    assert parts == pytest.approx(whole, abs=1e-4)
    session.move(2, 1, len(prompt))
    following = session.decode([7, 7], [len(prompt) + 1] * 2)
    assert following[1] == pytest.approx(following[0], abs=1e-4)

    # With prompt lookup it gives the same tokens.
    tokens = [asyncio.run(answers(session, prompts, most)) for most in (0, 4)]
    assert tokens[0] == tokens[1]


async def answers(session: DecoderSession, prompts: list[list[int]], most: int) -> list[list[int]]:
    engine = BatchingEngine(session, max_input_len=64, max_queue=9, speculative_tokens=most)

    async def read(prompt: list[int]) -> list[int]:
        stream = engine.generate(prompt, Sampling(60, temperature=0))
        return [token.id async for tokens in stream for token in tokens]

    try:
        return await asyncio.gather(*map(read, prompts))
    finally:
        engine.close()


def test_an_architecture_that_the_builder_does_not_know_is_refused(tmp_path: Path) -> None:
    model = make_model_folder(tmp_path / "model", "demo")
    config = SIZES | {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match=r"cannot become an ONNX Runtime engine .*not currently"):
        onnxruntime.build(model, tmp_path / "engine", "fp32", tmp_path / "scratch")
