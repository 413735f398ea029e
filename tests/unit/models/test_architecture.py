"""Sizes are read as transformers reads them."""

from pathlib import Path

import pytest

from pipeline.core.errors import DataError
from pipeline.models.architecture import Llama3Rope, Window, read_shape
from tests.unit.model_folders import add_weights, edit, make_model_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return add_weights(make_model_folder(tmp_path / "model", "demo"))


@pytest.mark.parametrize(
    ("architecture", "settings", "window"),
    [
        ("MistralForCausalLM", {"sliding_window": None}, None),
        ("MistralForCausalLM", {"sliding_window": 512}, None),  # the whole context
        ("MistralForCausalLM", {"sliding_window": 511}, Window(511, (True, True))),
        # The default is 4096.
        ("MistralForCausalLM", {"max_position_embeddings": 4097}, Window(4096, (True, True))),
        ("Qwen2ForCausalLM", {"sliding_window": 8, "use_sliding_window": False}, None),
        ("Qwen2ForCausalLM", {"sliding_window": 8, "use_sliding_window": True}, None),  # 28 layers
        (
            "Qwen2ForCausalLM",
            {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 1},
            Window(8, (False, True)),
        ),
        (
            "Qwen2ForCausalLM",
            {
                "sliding_window": 8,
                "use_sliding_window": True,
                "layer_types": ["sliding_attention", "full_attention"],
            },
            Window(8, (True, False)),
        ),
        ("LlamaForCausalLM", {"sliding_window": 8}, None),  # LlamaConfig has no such field
    ],
)
def test_windows_are_read_layer_by_layer(
    folder: Path, architecture: str, settings: dict[str, object], window: Window | None
) -> None:
    family = architecture.removesuffix("ForCausalLM").lower()
    edit("config.json", num_hidden_layers=2)(folder)
    edit("config.json", architectures=[architecture], model_type=family, **settings)(folder)
    assert read_shape(folder).window == window


def test_defaults_are_those_of_transformers(folder: Path) -> None:
    edit("config.json", num_key_value_heads=...)(folder)
    shape = read_shape(folder)
    assert (shape.kv_heads, shape.head_dim) == (2, 4)
    assert (shape.rope_theta, shape.rope_scaling, shape.tied) == (10_000.0, None, False)
    edit("config.json", architectures=["Qwen2ForCausalLM"], model_type="qwen2")(folder)
    with pytest.raises(DataError, match="num_key_value_heads=None"):
        read_shape(folder)


def test_llama3_rope_scaling_is_read(folder: Path) -> None:
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    edit("config.json", rope_scaling=scaling)(folder)
    assert read_shape(folder).rope_scaling == Llama3Rope(8.0, 1.0, 4.0, 64)


@pytest.mark.parametrize(
    ("architecture", "kind", "settings", "said"),
    [
        ("StableLmForCausalLM", "stablelm", {"use_parallel_residual": True}, "in no record of Sta"),
        ("StableLmForCausalLM", "stablelm", {"qk_layernorm": True}, "norms for each head"),
        (
            "SeedOssForCausalLM",
            "seed_oss",
            {"attention_bias": False, "attention_out_bias": True},
            "no bias of attention's output alone",
        ),
    ],
)
def test_parts_that_no_record_has_are_refused(
    folder: Path, architecture: str, kind: str, settings: dict[str, object], said: str
) -> None:
    edit("config.json", architectures=[architecture], model_type=kind)(folder)
    read_shape(folder)
    edit("config.json", **settings)(folder)
    with pytest.raises(DataError, match=said):
        read_shape(folder)
