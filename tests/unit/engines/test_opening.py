"""An engine is opened only where it was made to run, with the rendering it was trained with."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.engine import EngineConfig
from pipeline.core.errors import (
    ArtifactError,
    ConfigError,
    DataError,
    MissingRuntime,
    ResourceError,
)
from pipeline.core.hardware import GIB, Gpu, Machine
from pipeline.engines import opening
from pipeline.engines.description import Description
from pipeline.engines.onnxruntime import session as onnxruntime_session
from pipeline.engines.opening import describe, open_engine
from pipeline.engines.vllm import arguments as vllm
from pipeline.models.chat.renderer import Chat
from pipeline.orchestration.compose import compose
from tests.unit.model_folders import add_weights, make_model_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_model_folder(tmp_path / "build", "demo")


@pytest.fixture
def made(folder: Path) -> Description:
    return Description(
        runtime="onnxruntime",
        version=onnxruntime_session.runtime_version(),
        precision="fp32",
        hardware=onnxruntime_session.hardware(),
        rendering=Chat.load(folder).sha256,
        max_batch_size=2,
        max_input_len=8,
        max_seq_len=16,
    )


def test_a_description_reads_as_it_was_written(folder: Path, made: Description) -> None:
    made.write(folder)
    assert Description.read(folder) == made


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": "1.0.0"}, r"built with onnxruntime 1\.0\.0, and here is "),
        (
            {"hardware": {"device": "cpu", "architecture": "riscv"}},
            "built for riscv, cpu, and this",
        ),
        ({"rendering": "0" * 64}, "prompts would differ from those in training"),
        ({"runtime": "vllm", "version": "0.14"}, r"built with vllm 0\.14, and here is none"),
    ],
)
def test_an_engine_for_another_place_is_refused_with_the_command_to_rebuild(
    folder: Path, made: Description, change: dict[str, Any], words: str
) -> None:
    replace(made, **change).write(folder)
    with pytest.raises(ArtifactError, match=words) as refused:
        open_engine(folder, max_queue=1)
    assert f"`rm -r {folder} && python -m pipeline stage=build`" in str(refused.value)


def test_an_engine_that_does_not_fit_here_is_refused_with_both_sizes(
    folder: Path, made: Description
) -> None:
    replace(made, memory_bytes=2**50).write(folder)
    with pytest.raises(ResourceError, match=r"takes 1048576\.0 GiB .* lower engine") as refused:
        open_engine(folder, max_queue=1)
    assert "2 answers of 16 tokens" in str(refused.value)


@pytest.fixture
def settings() -> EngineConfig:
    return EngineConfig.model_validate(compose([])["engine"])


def test_an_hf_folder_is_described_as_the_first_profile_that_opens_it(
    tmp_path: Path, settings: EngineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = Machine("Linux", "3.12", "a processor", 2.0, 8 * GIB, None, ())
    monkeypatch.setattr(opening, "inspect_machine", lambda: bare)
    folder = add_weights(make_model_folder(tmp_path / "model", "demo"))
    described = describe(folder, settings)
    assert (described.runtime, described.precision) == ("hf", "fp32")
    assert described.rendering == Chat.load(folder).sha256
    assert (described.max_seq_len, described.hardware) == (384, {})
    assert 0 < described.memory_bytes < 8 * GIB
    asked = settings.model_copy(update={"lora_rank": 8})
    assert describe(folder, asked).lora_rank == 8
    refused = (
        ({"name": "onnxruntime"}, ConfigError, "engine=onnxruntime has no profile"),
        ({"name": "vllm"}, MissingRuntime, "pip install vllm"),
        ({"max_seq_len": 513}, ConfigError, "over the 512 positions"),
        ({"max_seq_len": 128}, ConfigError, "leaves no room for an answer"),
        ({"max_batch_size": 10**6}, ResourceError, r"engine\.max_batch_size=\d+ fits"),
    )
    for changes, error, words in refused:
        with pytest.raises(error, match=words):
            describe(folder, settings.model_copy(update=changes))


def test_a_format_that_vllm_does_not_load_is_no_matter_of_installing_it(
    tmp_path: Path, settings: EngineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = Gpu("NVIDIA H200", 140 * GIB, "9.0", mig=False)
    here = Machine("Linux", "3.12", "a processor", 2.0, 8 * GIB, None, (gpu,))
    monkeypatch.setattr(opening, "inspect_machine", lambda: here)
    monkeypatch.setattr(vllm, "version", lambda: "0.24.0")
    folder = add_weights(make_model_folder(tmp_path / "model", "demo"))
    quantized = {"quant_algo": "W4A16_AWQ", "kv_cache_quant_algo": None}
    (folder / "hf_quant_config.json").write_text(json.dumps({"quantization": quantized}))
    asked = settings.model_copy(update={"name": "vllm"})
    with pytest.raises(ConfigError, match="does not load int4_awq: choose quantize=fp8") as refused:
        describe(folder, asked)
    assert "pip install" not in str(refused.value)


def test_a_model_that_sees_pictures_writes_text(tmp_path: Path, settings: EngineConfig) -> None:
    folder = add_weights(make_model_folder(tmp_path / "model", "demo"))
    config = json.loads((folder / "config.json").read_text())
    whole = {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": config}
    (folder / "config.json").write_text(json.dumps(whole))
    with pytest.raises(MissingRuntime, match="pip install vllm"):
        describe(folder, settings.model_copy(update={"name": "vllm"}))


def test_an_embedding_model_is_described_by_its_tokenizer(
    tmp_path: Path, settings: EngineConfig
) -> None:
    folder = make_model_folder(tmp_path / "model", "demo")
    (folder / "config.json").write_text('{"architectures": ["BertModel"]}')
    described = describe(folder, settings)
    assert described.runtime == "hf"
    with pytest.raises(ConfigError, match=r"makes embeddings: serve it with engine\.name=hf"):
        describe(folder, settings.model_copy(update={"name": "vllm"}))
    (folder / "tokenizer.json").unlink()
    with pytest.raises(DataError, match=r"tokenizer\.json cannot be read"):
        describe(folder, settings)


@pytest.mark.parametrize("content", [None, "{", '{"runtime": "onnxruntime"}'])
def test_a_folder_without_a_description_is_refused(folder: Path, content: str | None) -> None:
    if content is not None:
        (folder / "engine.json").write_text(content)
    with pytest.raises(ArtifactError, match=r"engine\.json cannot be read"):
        open_engine(folder, max_queue=1)


def test_a_graph_that_is_missing_is_refused(folder: Path, made: Description) -> None:
    made.write(folder)
    with pytest.raises(ArtifactError, match=r"genai_config\.json"):
        open_engine(folder, max_queue=1)
    names = {"inputs": {}, "outputs": {"logits": "logits"}}
    sizes = {"num_key_value_heads": 1, "head_size": 4, "num_hidden_layers": 1}
    model = {"vocab_size": 9, "decoder": {**names, **sizes}}
    (folder / "genai_config.json").write_text(json.dumps({"model": model}))
    with pytest.raises(ArtifactError, match=r"model\.onnx cannot be loaded"):
        open_engine(folder, max_queue=1)
