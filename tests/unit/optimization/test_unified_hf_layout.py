"""Folders written by hand, then broken."""

from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from pipeline.optimization.unified_hf_layout import check_unified_hf
from tests.unit.exported_folders import (
    ALGORITHMS,
    edit_config,
    edit_tensors,
    make_unified,
)


@pytest.mark.parametrize("format", ALGORITHMS)
def test_good_unified_folders_pass(tmp_path: Path, format: str) -> None:
    assert check_unified_hf(make_unified(tmp_path / "hf", format), format, "llama") == []


BROKEN_UNIFIED: dict[str, tuple[Callable[[Path], object], str]] = {
    "group size lost": (
        lambda f: edit_config(f, lambda c: c["quantization_config"].pop("group_size")),
        "config.json has group_size None and hf_quant_config.json 128",
    ),
    "no claim": (
        lambda f: edit_config(f, lambda c: c.pop("quantization_config")),
        "belong together",
    ),
    "not ModelOpt's": (
        lambda f: edit_config(f, lambda c: c["quantization_config"].update(quant_method="awq")),
        "quant_method 'awq'",
    ),
    "cache claimed": (
        lambda f: edit_config(f, lambda c: c["quantization_config"].update(kv_cache_scheme={})),
        "kv_cache_scheme disagrees",
    ),
    "plain weights in another type": (
        lambda f: edit_tensors(
            f / "model.safetensors", lambda t: t.update({"model.norm.weight": ("F32", [256])})
        ),
        "model.norm.weight is F32 [256], must be BF16 [256]",
    ),
    "scale missing": (
        lambda f: edit_tensors(
            f / "model.safetensors", lambda t: t.pop("model.layers.1.mlp.up_proj.weight_scale")
        ),
        "model.layers.1.mlp.up_proj.weight_scale is missing",
    ),
    "tokenizer": (lambda f: (f / "tokenizer_config.json").unlink(), "tokenizer_config.json is"),
}


@pytest.mark.parametrize("case", BROKEN_UNIFIED)
def test_broken_unified_folders_are_found(tmp_path: Path, case: str) -> None:
    folder = make_unified(tmp_path / "hf", "w4a8_awq")
    damage, words = BROKEN_UNIFIED[case]
    damage(folder)
    assert any(words in problem for problem in check_unified_hf(folder, "w4a8_awq", "llama"))


def test_an_unquantized_folder_must_not_claim_to_be_quantized(tmp_path: Path) -> None:
    folder = make_unified(tmp_path / "hf", "none")
    edit_config(folder, lambda c: c.update(quantization_config={"quant_method": "modelopt"}))
    assert any("belong together" in p for p in check_unified_hf(folder, "none", "llama"))


@pytest.mark.parametrize(
    ("format", "scale"),
    [("nvfp4", "weight_scale_2"), ("fp8", "weight_scale"), ("fp8", "input_scale")],
)
@pytest.mark.parametrize(
    ("layer", "joined"),
    [("mlp.up_proj", "gate_proj, up_proj"), ("self_attn.k_proj", "q_proj, k_proj, v_proj")],
)
def test_layers_that_runtimes_join_share_their_scales(
    tmp_path: Path, format: str, scale: str, layer: str, joined: str
) -> None:
    folder = make_unified(tmp_path / "hf", format)
    tensors = load_file(folder / "model.safetensors")
    tensors[f"model.layers.2.{layer}.{scale}"] += 1
    save_file(tensors, folder / "model.safetensors")
    block = f"model.layers.2.{layer.partition('.')[0]}"
    expected = f"{block}: {scale} of {joined} differ, and runtimes join them"
    assert check_unified_hf(folder, format, "llama") == [expected]


def test_layers_that_stand_alone_have_scales_of_their_own(tmp_path: Path) -> None:
    folder = make_unified(tmp_path / "hf", "nvfp4")
    tensors = load_file(folder / "model.safetensors")
    for layer in ("mlp.down_proj", "self_attn.o_proj"):
        tensors[f"model.layers.2.{layer}.weight_scale_2"] += 1
    save_file(tensors, folder / "model.safetensors")
    assert check_unified_hf(folder, "nvfp4", "llama") == []
