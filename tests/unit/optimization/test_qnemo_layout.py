"""Folders written by hand, then broken."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.optimization.qnemo_layout import check_config, check_qnemo
from tests.unit.exported_folders import (
    ALGORITHMS,
    Tensors,
    edit_config,
    edit_tensors,
    make_qnemo,
    write_tensors,
)
from tests.unit.stages.test_quantize import LLAMA


@pytest.mark.parametrize("format", ALGORITHMS)
@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 1), (1, 2), (2, 4)])
def test_good_qnemo_folders_pass(tmp_path: Path, format: str, tp: int, pp: int) -> None:
    folder = make_qnemo(tmp_path / "qnemo", format, tp, pp)
    assert check_qnemo(folder, format, "llama") == []
    assert check_config(folder, LLAMA) == []


QKV = "transformer.layers.0.attention.qkv"
BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "a rank is missing": (lambda f: (f / "rank3.safetensors").unlink(), "rank3.safetensors is m"),
    "a rank too many": (
        lambda f: write_tensors(f / "rank4.safetensors", {}),
        "rank4.safetensors belongs to no rank",
    ),
    "world size": (
        lambda f: edit_config(f, lambda c: c["mapping"].update(world_size=2)),
        "world_size 2 is not 2 x 2",
    ),
    "another format": (
        lambda f: edit_config(f, lambda c: c["quantization"].update(quant_algo="FP8")),
        "quant_algo is 'FP8', must be 'W4A16_AWQ'",
    ),
    "group size": (
        lambda f: edit_config(f, lambda c: c["quantization"].pop("group_size")),
        "group_size is None, must be 128",
    ),
    "lm_head": (
        lambda f: edit_config(f, lambda c: c["quantization"].update(exclude_modules=[])),
        "does not name lm_head",
    ),
    "another family": (
        lambda f: edit_config(f, lambda c: c.update(architecture="Qwen2ForCausalLM")),
        "architecture is 'Qwen2ForCausalLM', must be 'LlamaForCausalLM'",
    ),
    "embedding": (
        lambda f: edit_config(f, lambda c: c.update(use_parallel_embedding=False)),
        "split on dimension 0",
    ),
    "cache": (
        lambda f: edit_config(f, lambda c: c["quantization"].update(kv_cache_quant_algo="FP8")),
        "kv_cache_scaling_factor is missing",
    ),
    "embedding on the last stage": (
        lambda f: edit_tensors(
            f / "rank2.safetensors",
            lambda t: t.update({"transformer.vocab_embedding.weight": ("BF16", [1024, 256])}),
        ),
        "rank2.safetensors: transformer.vocab_embedding.weight is not expected",
    ),
    "global layer numbers": (
        lambda f: edit_tensors(
            f / "rank2.safetensors",
            lambda t: t.update({n.replace("layers.0", "layers.2"): t.pop(n) for n in list(t)}),
        ),
        f"rank2.safetensors: {QKV}.prequant_scaling_factor is missing",
    ),
    "type": (
        lambda f: edit_tensors(
            f / "rank1.safetensors", lambda t: t.update({f"{QKV}.weight": ("U8", [128, 256])})
        ),
        f"rank1.safetensors: {QKV}.weight is U8 [128, 256], must be I8 [128, 256]",
    ),
    "shape": (
        lambda f: edit_tensors(
            f / "rank0.safetensors", lambda t: t.update({f"{QKV}.weight": ("I8", [256, 128])})
        ),
        "must be I8 [128, 256]",
    ),
    "tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "tokenizer.json is missing"),
    "quant_cfg.json": (
        lambda f: (f / "quant_cfg.json").write_text("{}"),
        "quant_cfg.json is there for one format",
    ),
    "no JSON": (lambda f: (f / "config.json").write_text("{"), "cannot be read: JSONDecodeError"),
    "no safetensors": (
        lambda f: (f / "rank1.safetensors").write_bytes(b"torch"),
        "cannot be read: SafetensorError",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_qnemo_folders_are_found(tmp_path: Path, case: str) -> None:
    folder = make_qnemo(tmp_path / "qnemo", "int4_awq", 2, 2)
    damage, words = BROKEN[case]
    damage(folder)
    assert any(words in problem for problem in check_qnemo(folder, "int4_awq", "llama"))


def test_layers_left_out_by_the_configuration_are_plain(tmp_path: Path) -> None:
    folder = make_qnemo(tmp_path / "qnemo", "fp8", 1, 1)
    pattern = "transformer.layers.*.mlp.proj"
    edit_config(folder, lambda c: c["quantization"]["exclude_modules"].append(pattern))
    assert any(
        "mlp.proj.weight is F8_E4M3" in problem for problem in check_qnemo(folder, "fp8", "llama")
    )

    def plain(tensors: Tensors) -> None:
        for name in [name for name in tensors if ".mlp.proj." in name]:
            del tensors[name]
        names = (f"transformer.layers.{layer}.mlp.proj.weight" for layer in range(4))
        tensors.update(dict.fromkeys(names, ("BF16", [256, 768])))

    edit_tensors(folder / "rank0.safetensors", plain)
    assert check_qnemo(folder, "fp8", "llama") == []


def test_sizes_of_another_model_are_found(tmp_path: Path) -> None:
    folder = make_qnemo(tmp_path / "qnemo", "fp8", 1, 1)
    edit_config(folder, lambda c: c.update(rotary_base=500000.0, norm_epsilon=1e-6))
    problems = check_config(folder, LLAMA)
    assert [problem.split()[1] for problem in problems] == ["rotary_base", "norm_epsilon"]


def test_a_scale_is_a_number_or_a_vector_of_one(tmp_path: Path) -> None:
    folder = make_qnemo(tmp_path / "qnemo", "nvfp4", 1, 1)
    name = f"{QKV}.weights_scaling_factor_2"
    edit_tensors(folder / "rank0.safetensors", lambda t: t.update({name: ("F32", [])}))
    assert check_qnemo(folder, "nvfp4", "llama") == []
    edit_tensors(folder / "rank0.safetensors", lambda t: t.update({name: ("F32", [2])}))
    assert check_qnemo(folder, "nvfp4", "llama") == [
        f"rank0.safetensors: {name} is F32 [2], must be F32 [1]"
    ]
