"""Every refusal of a model folder names the file and says how to fix it."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pipeline.core.errors import DataError
from pipeline.models.checks import check_folder
from pipeline.models.files import tensor_shapes
from tests.unit.model_folders import add_weights, edit, make_model_folder

Change = Callable[[Path], object]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return add_weights(make_model_folder(tmp_path / "model", "demo"))


def tensors(change: Callable[[dict[str, np.ndarray]], object]) -> Change:
    def apply(folder: Path) -> None:
        content = load_file(folder / "model.safetensors")
        change(content)
        save_file(content, folder / "model.safetensors")

    return apply


def cut_short(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


def shard_missing(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def shard_elsewhere(folder: Path) -> None:
    outside = folder.parent / "outside.safetensors"
    (folder / "model.safetensors").rename(outside)
    index = {"weight_map": {"model.norm.weight": "../outside.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def token_beyond_the_embedding(folder: Path) -> None:
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    tokenizer["added_tokens"].append({"id": 9999, "content": "<|new|>", "special": True})
    file.write_text(json.dumps(tokenizer))


def header(change: Callable[[dict[str, dict[str, object]]], object]) -> Change:
    """A change to the header of the weights; the tensors' bytes stay."""

    def apply(folder: Path) -> None:
        file = folder / "model.safetensors"
        content = file.read_bytes()
        length = int.from_bytes(content[:8], "little")
        described = json.loads(content[8 : 8 + length])
        change(described)
        text = json.dumps(described).encode()
        file.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])

    return apply


def overlap(described: dict[str, dict[str, object]]) -> None:
    described["model.norm.weight"]["data_offsets"] = [0, 32]


def index_without_metadata(folder: Path) -> None:
    index = {"weight_map": {"model.norm.weight": "model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def index_of_numbers(folder: Path) -> None:
    index = {"weight_map": {"model.norm.weight": 3}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def whole(folder: Path) -> None:
    (folder / "model-00001-of-00002.safetensors").touch()
    (folder / "model.safetensors").touch()


def twice(folder: Path) -> None:
    content = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = ("model-1.safetensors", "model-2.safetensors")
    for name in names:
        save_file(content, folder / name)
    weight_map = dict.fromkeys(content, names[0]) | {"model.norm.weight": names[1]}
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


SCALING = {"rope_type": "ntk", "factor": 4.0}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
REFUSALS: dict[str, tuple[Change, str, str]] = {
    # what is wrong: how the folder is made so, the file named, words of the message
    "no config": (lambda f: (f / "config.json").unlink(), "config.json", "does not exist"),
    "not JSON": (lambda f: (f / "config.json").write_text("{"), "config.json", "cannot be read"),
    "a JSON list": (
        lambda f: (f / "config.json").write_text("[]"),
        "config.json",
        "does not hold a JSON object",
    ),
    "unknown architecture": (
        edit("config.json", architectures=["GPT2LMHeadModel"]),
        "config.json",
        "GPT2LMHeadModel is not supported",
    ),
    "no architecture": (edit("config.json", architectures=...), "config.json", "not given"),
    "an architecture that is a number": (
        edit("config.json", architectures=[3]),
        "config.json",
        "architectures=[3] should be a list of names",
    ),
    "an architecture outside a list": (
        edit("config.json", architectures="LlamaForCausalLM"),
        "config.json",
        "architectures='LlamaForCausalLM' should be a list of names",
    ),
    "another model type": (
        edit("config.json", model_type="gpt2"),
        "config.json",
        "model_type='gpt2' does not fit architectures=['LlamaForCausalLM']: write 'llama'",
    ),
    "no model type": (edit("config.json", model_type=...), "config.json", "model_type=None"),
    "a rotary base of null": (
        edit("config.json", rope_theta=None),
        "config.json",
        "rope_theta=None should be a number above 0",
    ),
    "a rotary base of text": (edit("config.json", rope_theta="1e4"), "config.json", "rope_theta="),
    "an epsilon of null": (edit("config.json", rms_norm_eps=None), "config.json", "rms_norm_eps="),
    "a dropout above 1": (
        edit("config.json", attention_dropout=2),
        "config.json",
        "attention_dropout=2 should be a number from 0, below 1",
    ),
    "a range that is not finite": (
        edit("config.json", initializer_range=float("nan")),
        "config.json",
        "initializer_range=nan",
    ),
    "a window of text": (
        edit(
            "config.json",
            architectures=["MistralForCausalLM"],
            model_type="mistral",
            sliding_window="8",
        ),
        "config.json",
        "sliding_window='8'",
    ),
    "code in config": (
        edit("config.json", auto_map={"AutoConfig": "x.Y"}),
        "config.json",
        "auto_map",
    ),
    "code in tokenizer": (
        edit("tokenizer_config.json", auto_map={"AutoTokenizer": ["x.Y", None]}),
        "tokenizer_config.json",
        "auto_map",
    ),
    "already quantized": (
        edit("config.json", quantization_config={"quant_method": "gptq"}),
        "config.json",
        "already quantized",
    ),
    "two rotary bases": (
        edit("config.json", rope_theta=1e4, rope_parameters={"rope_theta": 1e6}),
        "config.json",
        "rope_theta=10000.0 and rope_parameters, which says 1000000.0, disagree",
    ),
    "another activation": (edit("config.json", hidden_act="mish"), "config.json", "hidden_act"),
    "attention bias": (edit("config.json", attention_bias=True), "config.json", "q_proj.bias"),
    "MLP bias": (edit("config.json", mlp_bias=True), "config.json", "gate_proj.bias"),
    "another rope scaling": (edit("config.json", rope_scaling=SCALING), "config.json", "'ntk'"),
    "rotary settings that are a list": (
        edit("config.json", rope_parameters=[1e6]),
        "config.json",
        "rope_parameters=[1000000.0] should be an object",
    ),
    "two names of a rotary kind": (
        edit("config.json", rope_parameters={"rope_type": "yarn", "type": "linear"}),
        "config.json",
        "rope_parameters.rope_type='yarn' and type='linear' disagree",
    ),
    "rotary settings of a layer type unknown": (
        edit("config.json", rope_parameters={"full_attention": {}, "linear_attention": {}}),
        "config.json",
        "has 'linear_attention' beside layer types",
    ),
    "windowed layers without windows": (
        edit("config.json", layer_types=["sliding_attention"]),
        "config.json",
        "layer_types has sliding_attention, though Llama has no windows",
    ),
    "a layer type too many": (
        edit("config.json", layer_types=["full_attention"] * 2),
        "config.json",
        "layer_types names 2 layers and num_hidden_layers is 1",
    ),
    "a layer type unknown": (
        edit("config.json", layer_types=["linear_attention"]),
        "config.json",
        "layer_types=['linear_attention'] should be a list of full_attention",
    ),
    "quantized by ModelOpt": (
        lambda f: (f / "hf_quant_config.json").write_text("{}"),
        "hf_quant_config.json",
        "the weights of ModelOpt, already quantized",
    ),
    "a state of ModelOpt": (
        lambda f: (f / "modelopt_state.pth").touch(),
        "modelopt_state.pth",
        "the state of a quantized model",
    ),
    "an adapter beside the weights": (
        lambda f: (f / "adapter_config.json").write_text("{}"),
        "adapter_config.json",
        "merge_and_unload",
    ),
    "two models": (
        lambda f: (shard_missing(f), whole(f)),
        "model.safetensors",
        "which of them are the model is not clear",
    ),
    "a tensor twice": (twice, "model-2.safetensors", "is in model-1.safetensors, too"),
    "half a rope scaling": (
        edit("config.json", rope_scaling={"rope_type": "llama3", "factor": 8.0}),
        "config.json",
        "low_freq_factor",
    ),
    "a rope scaling by 0": (
        edit("config.json", rope_scaling={**LLAMA3, "factor": 0}),
        "config.json",
        "rope_scaling.factor=0 should be a number above 0",
    ),
    "a rope scaling without a band": (
        edit("config.json", rope_scaling={**LLAMA3, "low_freq_factor": 4.0}),
        "config.json",
        "rope_scaling.low_freq_factor=4 should be below high_freq_factor=4",
    ),
    "a size missing": (edit("config.json", hidden_size=...), "config.json", "hidden_size=None"),
    "a size of 0": (edit("config.json", num_hidden_layers=0), "config.json", "num_hidden_layers=0"),
    "heads and groups": (
        edit("config.json", num_attention_heads=4, num_key_value_heads=3),
        "config.json",
        "is not a multiple of",
    ),
    "pickled weights": (
        lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
        "pytorch_model.bin",
        "is a pickle",
    ),
    "weights for llama.cpp": (
        lambda f: (f / "model.safetensors").rename(f / "model.Q4_K_M.gguf"),
        "model.Q4_K_M.gguf",
        "holds weights for llama.cpp",
    ),
    "an adapter alone": (
        lambda f: (f / "model.safetensors").rename(f / "adapter_model.safetensors"),
        "adapter_model.safetensors",
        "is an adapter without its model",
    ),
    "no weights": (
        lambda f: (f / "model.safetensors").unlink(),
        "model.safetensors",
        "safe_serialization=True",
    ),
    "a shard missing": (shard_missing, "00001-of-00002", "index.json names it"),
    "a shard outside": (shard_elsewhere, "outside.safetensors", "index.json names it"),
    "an index of numbers": (index_of_numbers, "index.json", "weight_map has 3 for model.norm"),
    "an index without metadata": (
        index_without_metadata,
        "index.json",
        'has no metadata, which transformers reads: add "metadata": {}',
    ),
    "tensors that overlap": (
        header(overlap),
        "model.safetensors",
        "do not follow the tensor before it",
    ),
    "a tensor of another length": (
        header(lambda h: h["model.norm.weight"].update(shape=[4])),
        "model.safetensors",
        "the 16 bytes of F32 [4]",
    ),
    "an unknown dtype": (
        header(lambda h: h["model.norm.weight"].update(dtype="Q4")),
        "model.safetensors",
        "model.norm.weight has the unknown dtype Q4",
    ),
    "weights that are integers": (
        tensors(lambda t: t.update({"model.norm.weight": np.ones(8, np.int8)})),
        "model.safetensors",
        "model.norm.weight has type I8",
    ),
    "weights cut short": (cut_short, "model.safetensors", "bytes and should hold"),
    "weights of zeros": (
        lambda f: (f / "model.safetensors").write_bytes(bytes(64)),
        "model.safetensors",
        "is not a safetensors file",
    ),
    "a tensor missing": (
        tensors(lambda t: t.pop("model.norm.weight")),
        "model",
        "no tensor model.norm.weight",
    ),
    "a tensor too many": (
        tensors(lambda t: t.update({"model.layers.0.extra": np.ones(2, np.float32)})),
        "model.safetensors",
        "model.layers.0.extra is not part of llama",
    ),
    "another tensor shape": (
        tensors(lambda t: t.update({"model.norm.weight": np.ones(9, np.float32)})),
        "model.safetensors",
        "[9] and config.json requires [8]",
    ),
    "no tokenizer": (
        lambda f: (f / "tokenizer.json").unlink(),
        "tokenizer.json",
        "save_pretrained",
    ),
    "no tokenizer options": (
        lambda f: (f / "tokenizer_config.json").unlink(),
        "tokenizer_config.json",
        "does not exist",
    ),
    "no vocabulary": (
        lambda f: (f / "tokenizer.json").write_text("{}"),
        "tokenizer.json",
        "is not a tokenizers file",
    ),
    "a token beyond the embedding": (
        token_beyond_the_embedding,
        "tokenizer.json",
        "'<|new|>' has id 9999",
    ),
    "a special token unknown": (
        edit("tokenizer_config.json", eos_token="<|nope|>"),
        "tokenizer_config.json",
        "'<|nope|>' is not in tokenizer.json",
    ),
    "a special token without text": (
        edit("tokenizer_config.json", bos_token={"x": 1}),
        "tokenizer_config.json",
        "bos_token {'x': 1} is not in tokenizer.json",
    ),
    "an end token of text": (
        edit("config.json", eos_token_id="x"),
        "config.json",
        "eos_token_id='x' should be a token's number",
    ),
    "an end token out of range": (
        edit("config.json", eos_token_id=[1, 40_000]),
        "config.json",
        "eos_token_id=40000",
    ),
    "no chat template": (
        edit("tokenizer_config.json", chat_template=...),
        "tokenizer_config.json",
        "no chat_template",
    ),
}


def test_a_whole_folder_is_accepted(folder: Path) -> None:
    shape = check_folder(folder)
    stored = tensor_shapes(folder / "model.safetensors")
    assert dict(shape.tensors()) == stored
    assert shape.parameters == sum(int(np.prod(s)) for s in stored.values())


@pytest.mark.parametrize("wrong", REFUSALS)
def test_refusals_name_the_file_and_the_remedy(folder: Path, wrong: str) -> None:
    change, file, words = REFUSALS[wrong]
    change(folder)
    with pytest.raises(DataError) as refused:
        check_folder(folder)
    message = str(refused.value)
    assert str(folder.parent) in message
    assert file in message
    assert words in message
    assert "\n" not in message


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere/config\.json does not exist: give the folder"):
        check_folder(tmp_path / "nowhere")


def test_a_tied_model_may_repeat_its_output_layer(folder: Path) -> None:
    edit("config.json", tie_word_embeddings=True)(folder)
    assert check_folder(folder).tied
    tensors(lambda t: t.pop("lm_head.weight"))(folder)
    assert check_folder(folder).tied
