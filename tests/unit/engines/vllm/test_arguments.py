"""vLLM's arguments for a unified HF checkpoint."""

import json
from pathlib import Path

import pytest

from pipeline.config.defaults import default_config
from pipeline.core.errors import ConfigError, MissingRuntime
from pipeline.engines.vllm import arguments as vllm

ENGINE = default_config(
    {
        "engine.name": "vllm",
        "engine.max_batch_size": 8,
        "engine.max_input_len": 1000,
        "engine.max_seq_len": 1200,
    }
).engine


def checkpoint(folder: Path, algorithm: str | None, kv_cache: str | None = None) -> Path:
    content = {"quantization": {"quant_algo": algorithm, "kv_cache_quant_algo": kv_cache}}
    (folder / "hf_quant_config.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("algorithm", "kv_cache", "quantization", "cache"),
    [
        ("FP8", None, "modelopt", "auto"),
        ("FP8", "FP8", "modelopt", "fp8"),
        ("NVFP4", None, "modelopt_fp4", "auto"),
        (None, None, None, "auto"),
    ],
)
def test_formats_that_it_loads(
    tmp_path: Path, algorithm: str | None, kv_cache: str | None, quantization: str, cache: str
) -> None:
    arguments = vllm.profile(checkpoint(tmp_path, algorithm, kv_cache), ENGINE, 2)
    assert arguments.get("quantization") == quantization
    assert arguments["kv_cache_dtype"] == cache
    sizes = ("max_model_len", "max_num_seqs", "tensor_parallel_size")
    assert [arguments[name] for name in sizes] == [1200, 8, 2]
    assert arguments["trust_remote_code"] is False


def test_adapters_and_arguments_of_ones_own(tmp_path: Path) -> None:
    assert "enable_lora" not in vllm.profile(checkpoint(tmp_path, None), ENGINE, 1)
    own = {"gpu_memory_utilization": 0.8, "max_num_seqs": 3}
    engine = ENGINE.model_copy(update={"lora_rank": 20, "arguments": own})
    arguments = vllm.profile(checkpoint(tmp_path, "FP8"), engine, 1)
    assert (arguments["enable_lora"], arguments["max_lora_rank"]) == (True, 32)
    assert {name: arguments[name] for name in own} == own
    with pytest.raises(ConfigError, match=r"lora_rank=600 is above vLLM's limit of 512"):
        vllm.profile(tmp_path, ENGINE.model_copy(update={"lora_rank": 600}), 1)


def test_an_unquantized_checkpoint_has_no_quantization_file(tmp_path: Path) -> None:
    assert "quantization" not in vllm.profile(tmp_path, ENGINE, 1)


def test_formats_that_it_does_not_load_have_a_remedy() -> None:
    for precision in ("int4_awq", "w4a8_awq", "int8_sq"):
        assert f"vLLM does not load {precision}: choose" in (vllm.not_loaded(precision) or "")
    for precision in ("bf16", "fp16", "fp32", "fp8", "nvfp4"):
        assert vllm.not_loaded(precision) is None


def test_the_refusal_says_what_to_install() -> None:
    refused = vllm.refusal("vLLM is not installed")
    assert isinstance(refused, MissingRuntime)
    for words in ("vLLM is not installed", "pip install vllm", "vllm/vllm-openai", "onnxruntime"):
        assert words in str(refused)
