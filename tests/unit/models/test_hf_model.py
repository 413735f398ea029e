"""Weights are read and written without the model being built."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from pipeline.core.errors import DataError
from pipeline.models import hf_model
from pipeline.models.files import MODELOPT_STATE, tensor_shapes, weight_files
from pipeline.models.hf_model import WeightReader, unlike, write_weights

WEIGHTS = {
    "a": torch.linspace(-1, 1, 24).reshape(4, 6),
    "b": torch.arange(10, dtype=torch.float32),
    "c": torch.full((3, 3), 1 / 3),
}


def test_written_weights_are_read_back(tmp_path: Path) -> None:
    write_weights(tmp_path, WEIGHTS.items(), dtype="float32")
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]
    with WeightReader(tmp_path) as reader:
        for name, tensor in WEIGHTS.items():
            assert torch.equal(reader.tensor(name), tensor)


def test_the_precision_is_the_one_asked_for(tmp_path: Path) -> None:
    write_weights(tmp_path, WEIGHTS.items(), dtype="bfloat16")
    stored = load_file(tmp_path / "model.safetensors")
    assert torch.equal(stored["c"], WEIGHTS["c"].bfloat16())


def test_tensors_are_written_in_their_own_types_where_none_is_given(tmp_path: Path) -> None:
    mixed = {"scale": torch.ones(2), "packed": torch.arange(3, dtype=torch.uint8)}
    write_weights(tmp_path, mixed.items(), dtype=None)
    stored = load_file(tmp_path / "model.safetensors")
    assert {name: tensor.dtype for name, tensor in stored.items()} == {
        "scale": torch.float32,
        "packed": torch.uint8,
    }


def test_views_of_one_tensor_are_written_apart(tmp_path: Path) -> None:
    whole = torch.arange(8, dtype=torch.float32)
    write_weights(tmp_path, [("x", whole[:4]), ("y", whole[4:]), ("z", whole)], dtype="float32")
    stored = load_file(tmp_path / "model.safetensors")
    assert stored["y"].tolist() == [4, 5, 6, 7]
    assert stored["z"].tolist() == list(range(8))


def test_greedy_takes_the_likeliest_token_whatever_the_model_asks_for() -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            vocab_size=24,
            max_position_embeddings=64,
            initializer_range=0.5,
        )
    ).eval()
    model.generation_config.repetition_penalty = 5.0
    model.generation_config.no_repeat_ngram_size = 1
    for first in range(2, 10):
        ids = [first]
        while len(ids) < 11 and 1 not in ids:
            ids.append(int(hf_model.logits(model, ids)[-1].argmax()))
        assert hf_model.greedy(model, [first], max_new_tokens=10, stop_ids=[1]) == ids[1:]


def test_large_models_are_written_in_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hf_model, "_SHARD_BYTES", 100)  # a: 96 bytes, b: 40, c: 36
    write_weights(tmp_path, WEIGHTS.items(), dtype="float32")
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert [file.name for file in weight_files(tmp_path)] == names
    assert list(tensor_shapes(tmp_path / names[1])) == ["b", "c"]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 96 + 40 + 36
    assert index["weight_map"] == {"a": names[0], "b": names[1], "c": names[1]}
    with WeightReader(tmp_path) as reader:
        assert torch.equal(reader.tensor("c"), WEIGHTS["c"])
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({}, []),
        ({"c": WEIGHTS["c"] + 1e-6}, []),  # rounds to the same
        ({"b": WEIGHTS["b"] * 1.01}, ["b"]),
        ({"d": torch.ones(2)}, ["d"]),  # was not written
    ],
)
def test_what_was_not_written_as_it_was_given_is_named(
    tmp_path: Path, given: dict[str, torch.Tensor], found: list[str]
) -> None:
    write_weights(tmp_path, WEIGHTS.items(), dtype="bfloat16")
    assert list(unlike(tmp_path, (WEIGHTS | given).items(), dtype="bfloat16")) == found


def test_a_tensor_that_nobody_gave_is_named(tmp_path: Path) -> None:
    write_weights(tmp_path, WEIGHTS.items(), dtype="bfloat16")
    left = {name: tensor for name, tensor in WEIGHTS.items() if name != "c"}
    assert list(unlike(tmp_path, left.items(), dtype="bfloat16")) == ["c"]


def test_an_adapters_configuration_has_its_modules_in_order(tmp_path: Path) -> None:
    """PEFT keeps them in a set, whose order differs from process to process."""
    names = [f"layers.0.{module}" for module in ("v_proj", "q_proj", "up_proj", "down_proj")]
    tensors = {
        f"base_model.model.{name}.lora_{part}.weight": torch.ones(2, 2)
        for name in names
        for part in "AB"
    }
    hf_model.write_adapter(
        tmp_path, tensors, base="demo", rank=2, alpha=4, rslora=False, dora=False
    )
    written = (tmp_path / "adapter_config.json").read_text()
    config = json.loads(written)
    assert config["target_modules"] == ["down_proj", "q_proj", "up_proj", "v_proj"]
    assert list(config) == sorted(config)


def test_a_quantized_models_state_beside_another_model_is_refused(tmp_path: Path) -> None:
    """ModelOpt would unpickle it, whatever model was asked for."""
    LlamaForCausalLM(
        LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                    num_attention_heads=1)
    ).save_pretrained(tmp_path)  # fmt: skip
    hf_model.load_model(tmp_path, dtype="float32")
    torch.save({}, tmp_path / MODELOPT_STATE)
    with pytest.raises(DataError, match="the state of a quantized model"):
        hf_model.load_model(tmp_path, dtype="float32")
