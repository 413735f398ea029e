"""Every refusal that follows from config.json and settings, asked before anything runs."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.defaults import default_config
from pipeline.config.schema import Config
from pipeline.core import hardware
from pipeline.core.errors import ConfigError, DataError, MissingRuntime, PipelineError
from pipeline.core.hardware import GIB, Gpu, Machine
from pipeline.orchestration import graph_run
from pipeline.planner.plan import make_plan
from pipeline.planner.refusals import check_run

# A small Llama that every stage takes.
LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 256,
    "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 4, "vocab_size": 1024, "max_position_embeddings": 512,
}  # fmt: skip
QWEN = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
GEMMA2 = {"architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2"}
NEMOTRON = {"architectures": ["NemotronForCausalLM"], "model_type": "nemotron"}
STARCODER2 = {"architectures": ["Starcoder2ForCausalLM"], "model_type": "starcoder2"}
LONGROPE = {
    "architectures": ["Phi3ForCausalLM"],
    "model_type": "phi3",
    "original_max_position_embeddings": 64,
    "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 32, "long_factor": [2.0] * 32},
}
# As SmolLM2-135M has them.
SMOL = {"hidden_size": 576, "num_attention_heads": 9, "num_key_value_heads": 3,
        "intermediate_size": 1536, "vocab_size": 49_152}  # fmt: skip


@pytest.fixture(autouse=True)
def _a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine("Linux", "3.12", "a CPU", 2.0, 16 * GIB, "", ())
    monkeypatch.setattr(hardware, "inspect_machine", lambda: machine)


def configured(folder: Path, model: dict[str, Any], settings: dict[str, Any]) -> Config:
    (folder / "config.json").write_text(json.dumps({**LLAMA, **model}))
    local = {"model": "local", "model.name": "x", "model.path": str(folder)}
    return default_config({**local, "artifacts": str(folder / "artifacts"), **settings})


# The model's changes, the settings, the error, and a part of the stage's sentence.
REFUSED: list[tuple[dict[str, Any], dict[str, Any], type[PipelineError], str]] = [
    ({"architectures": ["GPTNeoXForCausalLM"]}, {}, DataError, "the nearest supported"),
    ({"rope_scaling": {"type": "yarn"}}, {}, DataError, "rope_scaling of type 'yarn'"),
    (GEMMA2, {"finetune.pack_length": 64}, ConfigError, "Gemma 2's, takes no packed rows"),
    (GEMMA2, {"finetune.parallel.context": 2, "finetune.parallel.processes": 2}, ConfigError,
     "NeMo has no context parallelism for Gemma 2"),
    (LONGROPE, {"finetune.pack_length": 128}, ConfigError, "set pack_length to 64 at most"),
    (NEMOTRON, {"quantize.kv_cache": "fp8"}, ConfigError, "ModelOpt 0.37 cannot put quantizers"),
    ({**NEMOTRON, "rope_scaling": {"type": "linear", "factor": 2.0}}, {}, DataError,
     "transformers' class of the family ignores it"),
    (STARCODER2, {"engine": "onnxruntime"}, ConfigError, "has no builder for StarCoder2"),
    ({"hidden_act": "mish"}, {}, DataError, "hidden_act='mish' is not supported"),
    ({}, {"prepare.max_length": 513}, ConfigError, "set it to 512 at most"),
    ({}, {"prepare.validation_share": 0}, ConfigError, "the validation split is empty"),
    ({}, {"finetune.parallel.tensor": 3, "finetune.parallel.processes": 3,
          "finetune.global_batch_size": 63}, ConfigError, "must divide the model's 4 attention"),
    ({}, {"finetune.parallel.pipeline": 4, "finetune.parallel.processes": 4}, ConfigError,
     "must divide the model's 2 layers"),
    ({}, {"finetune.global_batch_size": 63, "finetune.parallel.processes": 2}, ConfigError,
     "must be a multiple of"),
    ({}, {"finetune.warmup_steps": 500}, ConfigError, "must be below"),
    ({}, {"finetune.min_learning_rate": 0.5}, ConfigError, "must not be above"),
    ({}, {"finetune.pack_length": 64, "finetune.parallel.context": 2,
          "finetune.parallel.processes": 2}, ConfigError, "cannot be combined"),
    ({}, {"finetune.adapter.target_modules": ["c_attn"]}, ConfigError, "no linear layer of this"),
    ({"tie_word_embeddings": True}, {"finetune.adapter.modules_to_save": ["lm_head"]}, ConfigError,
     "name embed_tokens, which trains both"),
    ({}, {"finetune.adapter.modules_to_save": ["lm_head"] * 2}, ConfigError, "lm_head twice"),
    ({}, {"finetune.adapter.modules_to_save": ["lm_head"], "finetune.objective": "dpo"},
     ConfigError, "its reference is the base without the adapter"),
    ({"tie_word_embeddings": True, "num_hidden_layers": 2},
     {"finetune.adapter.modules_to_save": ["embed_tokens"], "finetune.parallel.pipeline": 2,
      "finetune.parallel.processes": 2}, ConfigError, "hold a copy each"),
    ({"num_hidden_layers": 1}, {"finetune.recompute": "full"}, ConfigError, "changes nothing"),
    ({}, {"finetune.keep": "best", "prepare.validation_share": 0}, ConfigError,
     "finetune.keep=best needs a validation loss"),
    ({}, {"finetune.early_stopping.patience": 2, "prepare.validation_share": 0}, ConfigError,
     "finetune.early_stopping.patience=2 needs a validation loss"),
    ({}, {"finetune.early_stopping.patience": 4}, ConfigError, "is validated 4 times before"),
    ({}, {"finetune.precision": "fp8"}, MissingRuntime, "this machine, which has no GPU, has no"),
    (SMOL, {"quantize": "int4_awq"}, ConfigError, "hidden size 576 is not a multiple"),
    (SMOL, {"quantize.compare": ["w4a8_awq"]}, ConfigError, "leave w4a8_awq out of quantize.comp"),
    ({"intermediate_size": 576}, {"quantize": "w4a8_awq"}, ConfigError, "ffn size 576"),
    ({"head_dim": 48}, {"quantize": "int4_awq"}, ConfigError, "heads size 192 is not a multiple"),
    ({"vocab_size": 1000}, {"quantize": "int4_awq"}, ConfigError, "pad the vocabulary of 1000"),
    ({}, {"quantize": "nvfp4"}, MissingRuntime, "needs a GPU of compute capability 8.9"),
    ({}, {"export.tensor_parallel": 3}, ConfigError, "does not divide the model's 4 key-value"),
    ({}, {"export.pipeline_parallel": 3}, ConfigError, "does not divide the model's 2 layers"),
    ({}, {"quantize": "int4_awq", "export.tensor_parallel": 4}, ConfigError,
     "leaves 64 columns of the attention output"),
    ({}, {"quantize.exclude": ["lm_head", "layers.0"], "export.pipeline_parallel": 2}, ConfigError,
     "names a layer by its number"),
    ({}, {"engine.max_seq_len": 513}, ConfigError, "more than the 512 positions"),
    ({}, {"engine.max_input_len": 512}, ConfigError, "leaves no room for an answer"),
    ({}, {"benchmark.max_tokens": 512}, ConfigError, "leaves no room for a question"),
    ({"head_dim": 72}, {"engine": "onnxruntime"}, ConfigError, "a multiple of 16"),
    ({}, {"engine.profile": "hf-int3-tp1-pp1"}, ConfigError, "does not exist for this model"),
    ({}, {"engine": "vllm", "engine.lora_rank": 1024}, ConfigError, "vLLM's limit of 512"),
    ({}, {"engine": "vllm"}, MissingRuntime, "has no NVIDIA GPU. Install it"),
    ({}, {"engine": "trtllm"}, MissingRuntime, "has no NVIDIA GPU"),
    ({}, {"engine": "onnxruntime", "engine.lora_rank": 8}, ConfigError, "with LoRA adapters"),
    ({}, {"engine": "remote", "engine.arguments.base_url": "http://h/v1",
          "engine.speculative": "prompt_lookup"}, ConfigError, "engine=remote does not take it"),
    ({}, {"engine": "vllm", "engine.speculative": "prompt_lookup"}, ConfigError,
     "engine=vllm does not take it"),
    ({}, {"engine.arguments.max_model_len": 8}, ConfigError, "engine.arguments has no effect"),
    ({}, {"engine": "remote", "engine.arguments.base_url": "nowhere"}, ConfigError, "base_url="),
]  # fmt: skip


@pytest.mark.parametrize(("model", "settings", "error", "said"), REFUSED)
def test_what_a_stage_would_refuse_is_refused_before_anything_runs(
    tmp_path: Path,
    model: dict[str, Any],
    settings: dict[str, Any],
    error: type[PipelineError],
    said: str,
) -> None:
    config = configured(tmp_path, model, settings)
    with pytest.raises(error) as planned:
        make_plan(config)
    assert said in str(planned.value)
    assert not (tmp_path / "artifacts").exists()


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        ({}, {}),
        (SMOL, {}),  # with plain settings: no default of ours stands in the way
        ({"head_dim": 72}, {}),  # auto takes another engine than ONNX Runtime
        ({"max_position_embeddings": 64}, {}),
        ({}, {"engine": "remote", "engine.arguments.base_url": "http://h/v1"}),
        (QWEN, {"finetune": "sft", "quantize": "none"}),
    ],
)
def test_what_can_run_is_not_refused(
    tmp_path: Path, model: dict[str, Any], settings: dict[str, Any]
) -> None:
    assert check_run(configured(tmp_path, model, settings)).layers == 2


def test_the_whole_graph_is_refused_before_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configured(tmp_path, SMOL, {"quantize": "int4_awq"})
    monkeypatch.setattr(graph_run, "project_folder", lambda: tmp_path)
    monkeypatch.setattr(graph_run, "check_files", lambda node: None)
    tree = {"data": {"folder": "x"}, "model": {"path": "y"}}
    with pytest.raises(ConfigError, match="hidden size 576"):
        graph_run.run_graph(tree, config)
    assert not (tmp_path / "artifacts").exists()


def test_the_whole_graph_runs_on_one_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configured(tmp_path, {}, {"launcher.nodes": 2})
    monkeypatch.setattr(graph_run, "project_folder", lambda: tmp_path)
    monkeypatch.setattr(graph_run, "check_files", lambda node: None)
    tree = {"data": {"folder": "x"}, "model": {"path": "y"}}
    with pytest.raises(ConfigError, match=r"launcher\.nodes=2, but stage=all runs on one machine"):
        graph_run.run_graph(tree, config)


def test_another_machine_is_judged_by_its_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here there is no GPU; there, FP8 and NVFP4 are possible."""
    settings = {"plan.gpu": "h100", "finetune.precision": "fp8", "quantize": "nvfp4"}
    assert make_plan(configured(tmp_path, {}, settings)).problems == ()
    a100 = configured(tmp_path, {}, {**settings, "plan.gpu": "a100"})
    assert "A100 80GB has no FP8, which" in make_plan(a100).problems[0]
    gpu = Gpu("NVIDIA A100-SXM4-80GB", 80 * GIB, "8.0", mig=False)
    machine = Machine("Linux", "3.12", "a CPU", 2.0, 16 * GIB, "", (gpu,))
    monkeypatch.setattr(hardware, "inspect_machine", lambda: machine)
    with pytest.raises(MissingRuntime, match=r"A100-SXM4-80GB .compute.* has no FP8"):
        check_run(configured(tmp_path, {}, {"finetune.precision": "fp8"}))
