"""NIM's variables become our settings, or are refused by name."""

import logging
import os
from pathlib import Path

import pytest

from pipeline.core.errors import ConfigError
from pipeline.core.paths import ROOT
from pipeline.engines.description import Description
from pipeline.serving.__main__ import read_settings
from pipeline.serving.container import launch, nim_variables

# What NVIDIA's operator for Kubernetes sets on every NIM.
OF_THE_OPERATOR = {
    "NIM_SERVER_PORT": "9000",
    "NIM_HTTP_API_PORT": "9000",
    "NIM_JSONL_LOGGING": "1",
    "NIM_LOG_LEVEL": "info",
    "NGC_API_KEY": "secret",
}


@pytest.fixture
def hf(tmp_path: Path) -> Path:
    folder = tmp_path / "support-8b"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


@pytest.fixture
def built(tmp_path: Path) -> Path:
    folder = tmp_path / "engine"
    folder.mkdir()
    Description("onnxruntime", "1", "int8", {}, "hash", 4, 64, 96).write(folder)
    return folder


def settings_of(command: list[str]) -> list[str]:
    return [argument for argument in command if not argument.startswith("--")]


def test_without_variables_the_mounted_model_is_served_to_the_network(
    hf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "MODEL", str(hf))
    command = nim_variables.translate({"PATH": "/bin", "NIM_SERVED_MODEL_NAME": ""}).command()
    assert command[:4] == [
        f"--engine={hf}",
        "--model=support-8b",
        "serve.host=0.0.0.0",
        "serve.port=8000",
    ]


def test_without_a_model_the_error_names_what_to_mount(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no model: mount .* -v FOLDER:/model:ro"):
        nim_variables.translate({"NIM_MODEL_PATH": str(tmp_path)}).command()


def test_variables_of_nvidias_operator_are_accepted(hf: Path, tmp_path: Path) -> None:
    given = {**OF_THE_OPERATOR, "NIM_MODEL_NAME": str(hf), "NIM_CACHE_PATH": str(tmp_path)}
    started = nim_variables.translate(given)
    settings, _ = read_settings(settings_of(started.command()), hf)
    assert (settings.port, settings.host) == (9000, "0.0.0.0")
    assert started.environment["HF_HOME"] == f"{tmp_path}/huggingface"


def test_an_hf_folder_is_served_with_the_variables_settings(hf: Path) -> None:
    started = nim_variables.translate(
        {
            "NIM_MODEL_NAME": str(hf),
            "NIM_MODEL_PROFILE": "vllm",
            "NIM_MAX_MODEL_LEN": "8192",
            "NIM_TENSOR_PARALLEL_SIZE": "2",
            "NIM_KVCACHE_PERCENT": "0.8",
            "NIM_ENABLE_KV_CACHE_REUSE": "1",
            "NIM_MAX_LORA_RANK": "16",
            "NIM_PEFT_SOURCE": str(hf),
            "NIM_PEFT_REFRESH_INTERVAL": "60",
            "NIM_DISABLE_LOG_REQUESTS": "0",
            "NIM_PASSTHROUGH_ARGS": "engine.max_batch_size=4 serve.drain_delay=9 "
            "'serve.record=/records of today'",
        }
    )
    command = started.command()
    assert command[:2] == [f"--engine={hf}", "--model=support-8b"]
    settings, engine = read_settings(settings_of(command), hf)
    assert (settings.drain_delay, settings.record) == (9, Path("/records of today"))
    assert settings.log_content
    assert settings.adapters == hf
    assert settings.adapters_seconds == 60
    assert engine
    assert (engine.name, engine.max_seq_len, engine.max_input_len) == ("vllm", 8192, 8191)
    assert (engine.lora_rank, engine.profile, engine.max_batch_size) == (16, None, 4)
    assert engine.arguments == {
        "tensor_parallel_size": 2,
        "gpu_memory_utilization": 0.8,
        "enable_prefix_caching": True,
    }


def test_an_hf_folder_is_served_by_the_best_profile_if_none_is_named(hf: Path) -> None:
    engine = read_settings(
        settings_of(nim_variables.translate({"NIM_MODEL_PATH": str(hf)}).command()), hf
    )[1]
    assert engine
    assert (engine.name, engine.profile) == ("auto", None)


def test_profiles_are_named_as_nim_or_we_name_them(hf: Path) -> None:
    for given in ("tensorrt_llm-fp8-tp2-pp1", "trtllm-fp8-tp2-pp1"):
        started = nim_variables.translate({"NIM_MODEL_PATH": str(hf), "NIM_MODEL_PROFILE": given})
        engine = read_settings(settings_of(started.command()), hf)[1]
        assert engine
        assert (engine.name, engine.profile) == ("trtllm", "trtllm-fp8-tp2-pp1")


def test_tensorrt_llm_has_names_of_its_own(hf: Path) -> None:
    started = nim_variables.translate(
        {
            "NIM_MODEL_PATH": str(hf),
            "NIM_MODEL_PROFILE": "tensorrt_llm",
            "NIM_TENSOR_PARALLEL_SIZE": "2",
            "NIM_KVCACHE_PERCENT": "0.8",
            "NIM_ENABLE_KV_CACHE_REUSE": "0",
            "NIM_DISABLE_CUDA_GRAPH": "1",
        }
    )
    engine = read_settings(settings_of(started.command()), hf)[1]
    assert engine
    assert engine.arguments == {
        "tensor_parallel_size": 2,
        "kv_cache_config": {"free_gpu_memory_fraction": 0.8, "enable_block_reuse": False},
        "cuda_graph_config": None,
    }


def test_gpu_variables_are_refused_for_other_engines(hf: Path) -> None:
    with pytest.raises(ConfigError, match=r"NIM_KVCACHE_PERCENT needs vLLM or TensorRT-LLM"):
        nim_variables.translate({"NIM_MODEL_PATH": str(hf), "NIM_KVCACHE_PERCENT": "0.5"})


def test_an_engine_is_opened_as_it_was_built(built: Path) -> None:
    command = nim_variables.translate(
        {"NIM_FT_MODEL": str(built), "NIM_MODEL_PROFILE": "onnxruntime"}
    ).command()
    assert read_settings(settings_of(command), built)[1] is None
    with pytest.raises(ConfigError, match=r"NIM_MAX_MODEL_LEN cannot be changed.*built engine"):
        nim_variables.translate({"NIM_MODEL_PATH": str(built), "NIM_MAX_MODEL_LEN": "4096"})
    for name in ("vllm", "onnxruntime-fp32-tp1-pp1", "onnxruntime-int8-tp1-pp1-feat_lora"):
        told = rf"NIM_MODEL_PROFILE={name}.*was built for onnxruntime-int8-tp1-pp1:"
        with pytest.raises(ConfigError, match=told):
            nim_variables.translate({"NIM_MODEL_PATH": str(built), "NIM_MODEL_PROFILE": name})
    own = {"NIM_MODEL_PATH": str(built), "NIM_MODEL_PROFILE": "onnxruntime-int8-tp1-pp1"}
    assert nim_variables.translate(own).model == str(built)


def test_passthrough_arguments_cannot_change_a_built_engine(built: Path) -> None:
    given = {"NIM_MODEL_PATH": str(built)}
    with pytest.raises(ConfigError, match=r"NIM_PASSTHROUGH_ARGS=engine\.max_seq_len=4096 cannot"):
        nim_variables.translate({**given, "NIM_PASSTHROUGH_ARGS": "engine.max_seq_len=4096"})
    passed = {**given, "NIM_PASSTHROUGH_ARGS": "serve.max_queue=9"}
    assert "serve.max_queue=9" in nim_variables.translate(passed).command()


def test_a_runtimes_own_argument_is_passed_through(hf: Path) -> None:
    given = {"NIM_MODEL_PATH": str(hf), "NIM_MODEL_PROFILE": "vllm"}
    passed = "engine.arguments.max_num_batched_tokens=2048"
    engine = read_settings(
        settings_of(nim_variables.translate({**given, "NIM_PASSTHROUGH_ARGS": passed}).command()),
        hf,
    )[1]
    assert engine
    assert engine.arguments == {"max_num_batched_tokens": 2048}


def test_the_served_name_comes_before_the_custom_one() -> None:
    both = {"NIM_SERVED_MODEL_NAME": "served", "NIM_CUSTOM_MODEL_NAME": "custom"}
    assert nim_variables.translate(both).name == "served"
    assert nim_variables.translate({"NIM_CUSTOM_MODEL_NAME": "custom"}).name == "custom"


def test_traces_go_where_nim_sends_them() -> None:
    environment = nim_variables.translate(
        {
            "NIM_ENABLE_OTEL": "1",
            "NIM_OTEL_SERVICE_NAME": "bank",
            "NIM_OTEL_TRACES_EXPORTER": "otlp",
            "NIM_OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318",
        }
    ).environment
    assert environment["OTEL_SDK_DISABLED"] == "false"
    assert environment["OTEL_SERVICE_NAME"] == "bank"
    assert environment["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://collector:4318"


@pytest.mark.parametrize(
    ("name", "least"),
    [("DEFAULT", logging.INFO), ("debug", logging.INFO), ("WARNING", logging.WARNING)],
)
def test_log_levels(name: str, least: int) -> None:
    assert nim_variables.translate({"NIM_LOG_LEVEL": name}).log_level == least


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("NIM_SERVER_PORT", "80", "from 1024 to 65535"),
        ("NIM_SERVER_PORT", "http", "whole number"),
        ("NIM_MAX_MODEL_LEN", "1e6", "whole number"),
        ("NIM_KVCACHE_PERCENT", "80", "above 0 and at most 1"),
        ("NIM_KVCACHE_PERCENT", "nan", "above 0 and at most 1"),
        ("NIM_MODEL_NAME", "hf://meta-llama/Llama-3.1-8B-Instruct", "nothing is downloaded"),
        ("NIM_MODEL_PATH", "/nowhere", "no such folder"),
        ("NIM_SERVED_MODEL_NAME", "a,b", "one name"),
        ("NIM_MODEL_PROFILE", "sglang", "or tensorrt_llm, trtllm, vllm, onnxruntime, hf"),
        ("NIM_JSONL_LOGGING", "0", "JSON lines"),
        ("NIM_JSONL_LOGGING", "yes", "1 or 0"),
        ("NIM_LOG_LEVEL", "LOUD", "choose from"),
        ("NIM_CACHE_PATH", "/nowhere", "cannot write"),
        ("NIM_SSL_MODE", "TLS", "NIM_SSL_KEY_PATH and NIM_SSL_CERTS_PATH"),
        ("NIM_SSL_MODE", "ON", "DISABLED, TLS, MTLS"),
        ("NIM_SSL_KEY_PATH", "/no/key.pem", "mount it"),
        ("NIM_TRUST_REMOTE_CODE", "1", "never run"),
        ("NIM_OTEL_TRACES_EXPORTER", "console", "OTLP"),
        ("NIM_PASSTHROUGH_ARGS", "--tensor-parallel-size 4", "must be serve.key=value"),
        ("NIM_PASSTHROUGH_ARGS", "serve.port=80", "NIM_SERVER_PORT"),
        ("NIM_PEFT_SOURCE", "/no/adapters", "mount it"),
        ("NIM_PEFT_REFRESH_INTERVAL", "60", "set NIM_PEFT_SOURCE"),
        ("NIM_PEFT_REFRESH_INTERVAL", "soon", "a whole number"),
        ("NIM_SERVED_MODEL_NAMES", "bank", "did you mean NIM_SERVED_MODEL_NAME?"),
        ("NIM_FUSION", "1", "docs/containers.md"),
    ],
)
def test_unsupported_values_are_refused_by_name(name: str, value: str, why: str) -> None:
    with pytest.raises(ConfigError, match=name) as refusal:
        nim_variables.translate({name: value})
    assert why in str(refusal.value)


def test_all_problems_are_reported_together(hf: Path) -> None:
    given = {"NIM_SERVER_PORT": "0", "NIM_LOG_LEVEL": "x", "NIM_FT_MODEL": str(hf)}
    with pytest.raises(ConfigError) as refusal:
        nim_variables.translate({**given, "NIM_MODEL_PATH": str(hf.parent)})
    for name in ("NIM_SERVER_PORT", "NIM_LOG_LEVEL", "NIM_MODEL_PATH and NIM_FT_MODEL"):
        assert name in str(refusal.value)


def test_kubernetes_service_variables_are_ignored() -> None:
    link = {
        "NIM_LLM_SERVICE_HOST": "10.0.0.1",
        "NIM_LLM_SERVICE_PORT_OPENAI": "8000",
        "NIM_LLM_PORT": "tcp://10.0.0.1:8000",
        "NIM_PORT_8000_TCP_ADDR": "10.0.0.1",
    }
    assert nim_variables.translate(link).port == launch.PORT


def test_without_a_volume_caches_live_as_long_as_the_container(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "access", lambda place, mode: str(place) != nim_variables.CACHE)
    assert nim_variables.translate({}).environment["VLLM_CACHE_ROOT"] == "/tmp/vllm"


def test_the_documentation_lists_every_variable() -> None:
    page = (ROOT / "docs/containers.md").read_text()
    assert [
        name
        for name in [*nim_variables.VARIABLES, *nim_variables.REFUSED]
        if f"`{name}`" not in page
    ] == []
