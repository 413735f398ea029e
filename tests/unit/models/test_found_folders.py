"""Folders as people have them: saved by either transformers, with leftovers of training."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.core.errors import DataError
from pipeline.models import hf_model
from pipeline.models.architecture import read_shape
from pipeline.models.chat.renderer import PROBE, Chat
from pipeline.models.checks import check_folder
from pipeline.models.config_forms import plain_config
from pipeline.models.files import WEIGHTS, WEIGHTS_INDEX, copy_assets
from tests.unit.model_folders import CHATML, add_random_weights, edit, make_model_folder

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
# Left by transformers' Trainer, by save_pretrained of earlier versions, and by publishers.
LEFTOVERS = (
    "training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "rng_state_0.pth",
    "trainer_state.json", "pytorch_model.bin", "pytorch_model.bin.index.json", "scaler.pt",
    "original/consolidated.00.pth", "model.Q4_K_M.gguf", "onnx/model.onnx", "model.onnx",
    "consolidated.safetensors", "tf_model.h5", "flax_model.msgpack", "README.md",
    "global_step10/mp_rank_00_model_states.pt", "modeling_other.py",
)  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return add_random_weights(make_model_folder(tmp_path / "model", "chatml"), vocab_size=400)


def as_transformers_5(folder: Path, **rope: object) -> Path:
    """Rewrite a folder's files as transformers 5 writes them."""
    parameters = {"rope_theta": 5e5, "rope_type": "default", **rope}
    edit("config.json", rope_parameters=parameters, dtype="float32", torch_dtype=...,
         layer_types=["full_attention"] * 2, transformers_version="5.2.0")(folder)  # fmt: skip
    edit("tokenizer_config.json", tokenizer_class="TokenizersBackend", backend="tokenizers",
         extra_special_tokens=["<|extra|>"])(folder)  # fmt: skip
    template = json.loads((folder / "tokenizer_config.json").read_text())["chat_template"]
    (folder / "chat_template.jinja").write_text(template)
    edit("tokenizer_config.json", chat_template=...)(folder)
    return folder


def test_leftovers_of_training_are_never_read(folder: Path) -> None:
    expected = check_folder(folder)
    for name in LEFTOVERS:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"\x80\x04cposix\nsystem\n")  # a pickle that runs a command
    assert check_folder(folder) == expected
    hf_model.load_model(folder, dtype="float32")
    copy_assets(folder, folder.parent / "assets")
    assert not {file.name for file in (folder.parent / "assets").iterdir()} & set(LEFTOVERS)


@pytest.mark.parametrize("rope", [{}, LLAMA3], ids=["default", "llama3"])
def test_rotary_settings_of_transformers_5_count(folder: Path, rope: dict[str, object]) -> None:
    """The same weights in both forms give the same logits, and other ones than the default base."""
    ids = [3, 14, 15, 9, 26, 5, 35, 8] * 12
    scaling = {"rope_scaling": rope} if rope else {}
    default = hf_model.logits(hf_model.load_model(folder, dtype="float32"), ids)
    edit("config.json", rope_theta=5e5, **scaling)(folder)
    shape = read_shape(folder)
    expected = hf_model.logits(hf_model.load_model(folder, dtype="float32"), ids)
    edit("config.json", rope_theta=..., rope_scaling=...)(folder)
    as_transformers_5(folder, **rope)
    assert check_folder(folder) == shape
    assert shape.rope_theta == 5e5
    found = hf_model.logits(hf_model.load_model(folder, dtype="float32"), ids)
    assert torch.equal(found, expected)
    assert not torch.allclose(found, default, atol=1e-3)


def test_what_is_copied_has_the_form_that_transformers_4_reads(folder: Path) -> None:
    from transformers import AutoConfig, AutoTokenizer

    as_transformers_5(folder)
    chat, copied = Chat.load(folder), folder.parent / "copied"
    copy_assets(folder, copied)
    assert AutoConfig.from_pretrained(copied).rope_theta == 5e5
    tokenizer = AutoTokenizer.from_pretrained(copied)
    assert "<|extra|>" in tokenizer.additional_special_tokens
    messages = [dict(m) for m in PROBE]
    rendered = tokenizer.apply_chat_template(messages)
    assert rendered == chat.render(PROBE).ids == Chat.load(copied).render(PROBE).ids
    chat.save(folder.parent / "saved")
    assert Chat.load(folder.parent / "saved").sha256 == chat.sha256
    extra = chat.tokenizer.token_to_id("<|extra|>")
    assert extra == tokenizer.convert_tokens_to_ids("<|extra|>")


def test_rotary_settings_by_layer_type() -> None:
    file = Path("config.json")
    base, windowed = {"rope_theta": 1e6, "rope_type": "default"}, {"rope_theta": 1e4}
    same = plain_config(file, {"rope_parameters": dict.fromkeys(
        ("full_attention", "sliding_attention"), base)})  # fmt: skip
    assert same == {"rope_theta": 1e6, "rope_scaling": None}
    linear = {**base, "rope_type": "linear", "factor": 8.0, "partial_rotary_factor": 0.5}
    two = {"full_attention": linear, "sliding_attention": windowed}
    assert plain_config(file, {"rope_parameters": two}) == {
        "rope_theta": 1e6,
        "partial_rotary_factor": 0.5,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "rope_local_base_freq": 1e4,
    }
    with pytest.raises(DataError, match="scales its positions"):
        plain_config(file, {"rope_parameters": {"full_attention": base,
                                                "sliding_attention": linear}})  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("sharded", [False, True], ids=["single", "sharded"])
def test_weights_of_each_type_in_one_file_or_several(
    folder: Path, dtype: torch.dtype, sharded: bool
) -> None:
    expected = check_folder(folder)
    tensors = {n: t.to(dtype) for n, t in load_file(folder / WEIGHTS).items()}
    if not sharded:
        save_file(tensors, folder / WEIGHTS)
    else:
        (folder / WEIGHTS).unlink()
        names = sorted(tensors)
        parts = {"model-00001-of-00002.safetensors": names[:5],
                 "model-00002-of-00002.safetensors": names[5:]}  # fmt: skip
        for file, part in parts.items():
            save_file({name: tensors[name] for name in part}, folder / file, {"format": "pt"})
        weight_map = {name: file for file, part in parts.items() for name in part}
        index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
        (folder / WEIGHTS_INDEX).write_text(json.dumps(index))
    assert check_folder(folder) == expected


@pytest.mark.parametrize(
    "method", ["gptq", "awq", "fp8", "bitsandbytes", "compressed-tensors", "of-tomorrow"]
)
def test_weights_that_are_quantized_already_are_refused(folder: Path, method: str) -> None:
    edit("config.json", quantization_config={"quant_method": method, "bits": 4})(folder)
    with pytest.raises(DataError, match=r"already quantized: give the folder of the model .* card"):
        check_folder(folder)


def test_the_template_of_a_processor_reaches_the_copies(folder: Path) -> None:
    expected = Chat.load(folder).render(PROBE)
    edit("tokenizer_config.json", chat_template=...)(folder)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": CHATML}))
    check_folder(folder)
    assert Chat.load(folder).render(PROBE) == expected
    copy_assets(folder, folder.parent / "copied")
    assert (folder.parent / "copied" / "chat_template.jinja").read_text() == CHATML
    # One that a tokenizer has as well is not read by those who load the tokenizer alone.
    edit("tokenizer_config.json", chat_template=CHATML)(folder)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": "{{ 1 }}"}))
    assert Chat.load(folder).render(PROBE) == expected
    copy_assets(folder, folder.parent / "again")
    assert not (folder.parent / "again" / "chat_template.jinja").exists()


def test_named_templates_without_a_default_are_named(folder: Path) -> None:
    named = [{"name": "tool_use", "template": CHATML}, {"name": "rag", "template": CHATML}]
    edit("tokenizer_config.json", chat_template=named)(folder)
    with pytest.raises(DataError, match=r"templates named tool_use, rag, and none named default"):
        Chat.load(folder)


# Drops thoughts of given answers, as DeepSeek R1's; writes an empty one, as Qwen3 Thinking's.
DROPS = CHATML.replace("assistant\n' }}", "assistant\n<think>\n' }}")
WRITES = DROPS.replace(
    "message.role + '\n' + message.content",
    "message.role + '\n' + ('<think>\n\n</think>\n\n' if message.role == 'assistant' and loop.last"
    " else '') + message.content",
)
BARE = CHATML.replace("assistant\n' }}", "assistant\n<think>' }}")


@pytest.mark.parametrize("template", [DROPS, WRITES, BARE], ids=["drops", "writes", "bare"])
def test_an_answer_within_a_thought_is_trained_as_it_is_served(
    tmp_path: Path, template: str
) -> None:
    chat = Chat.load(make_model_folder(tmp_path / "model", "chatml", template))
    messages = [*PROBE, {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]
    prompt = chat.prompt(messages[:-1])
    rendered = chat.render(messages)
    assert rendered.ids[: len(prompt)] == prompt
    assert chat.tokenizer.decode(prompt, skip_special_tokens=False).count("<think>") == 1
    trained = [i for i, on in zip(rendered.ids, rendered.mask, strict=True) if on]
    answers = chat.tokenizer.decode(trained, skip_special_tokens=False)
    line = "\n" if template == BARE else ""
    assert answers == f"b<|im_end|>{line}\n</think>\n\nd<|im_end|>"
    whole = chat.text(messages)
    assert chat.tokenizer.decode(rendered.ids, skip_special_tokens=False) == whole


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["weights/.metadata", "context/io.json"], "is a checkpoint of NeMo"),
        (["model_config.yaml", "model_weights.ckpt"], "is a checkpoint of NeMo"),
        (["config.json", "rank0.safetensors"], "is a TensorRT-LLM checkpoint"),
        ([], "is a checkpoint of NeMo"),
    ],
)
def test_checkpoints_of_other_kinds_are_named(tmp_path: Path, names: list[str], words: str) -> None:
    place = tmp_path / ("other" if names else "model.nemo")
    for name in names:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text("{}")
    if not names:
        place.write_bytes(b"x")
    with pytest.raises(DataError, match=words) as refused:
        check_folder(place)
    assert "\n" not in str(refused.value)
