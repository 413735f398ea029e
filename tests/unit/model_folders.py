"""Tiny model folders with the chat templates of well-known families, as test inputs."""

import json
from collections.abc import Callable
from pathlib import Path

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    pre_tokenizers,
    processors,
    trainers,
)

LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    "+ message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}"
    "{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
CHATML = (
    "{%- for message in messages %}\n"
    "    {%- if loop.first and messages[0]['role'] != 'system' %}\n"
    "        {{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}\n"
    "    {%- endif %}\n"
    "    {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}\n"
    "    {{- '<|im_start|>assistant\n' }}\n"
    "{%- endif %}"
)
# Puts the system turn into the last user turn: earlier prompts are no prefixes of later ones.
MISTRAL = (
    "{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] %}"
    "{%- set turns = messages[1:] %}{%- else %}{%- set turns = messages %}{%- endif %}"
    "{{- bos_token }}{%- for message in turns %}"
    "{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{- raise_exception('roles must alternate') }}{%- endif %}"
    "{%- if message['role'] == 'user' %}"
    "{%- if loop.index0 >= turns | length - 2 and system is defined %}"
    "{{- '[INST] ' + system + '\n\n' + message['content'] + '[/INST]' }}"
    "{%- else %}{{- '[INST] ' + message['content'] + '[/INST]' }}{%- endif %}"
    "{%- else %}{{- ' ' + message['content'] | trim + eos_token }}{%- endif %}{%- endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{% set first = messages[0]['content'] + '\n\n' %}{% set turns = messages[1:] %}"
    "{% else %}{% set first = '' %}{% set turns = messages %}{% endif %}"
    "{% for message in turns %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + (first if loop.first else '')"
    "+ message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
ZEPHYR = (
    "{% for message in messages %}\n{% if message['role'] == 'user' %}\n"
    "{{ '<|user|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'system' %}\n"
    "{{ '<|system|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'assistant' %}\n"
    "{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
)
PHI3 = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
# Shows an empty thought in the last turn, drops the thoughts of earlier ones.
QWEN3 = (
    "{%- for message in messages %}{%- set content = message.content %}"
    "{%- if message.role == 'assistant' %}"
    "{%- if '</think>' in content %}{%- set content = content.split('</think>')[-1].lstrip('\n') %}"
    "{%- endif %}{%- if loop.last %}"
    "{{- '<|im_start|>assistant\n<think>\n\n</think>\n\n' + content + '<|im_end|>\n' }}{%- else %}"
    "{{- '<|im_start|>assistant\n' + content + '<|im_end|>\n' }}{%- endif %}"
    "{%- else %}{{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>\n' }}{%- endif %}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
DEMO = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message.role + '|>\n' + message.content + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)

TEMPLATES = {
    "llama3": LLAMA3,
    "chatml": CHATML,
    "mistral": MISTRAL,
    "gemma": GEMMA,
    "zephyr": ZEPHYR,
    "phi3": PHI3,
    "qwen3": QWEN3,
    "demo": DEMO,
}
# Control tokens, then bos, eos and the token that ends the assistant's turn.
CONTROL = {
    "llama3": (
        ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        *("<|begin_of_text|>", "<|eot_id|>", "<|eot_id|>"),
    ),
    "chatml": (
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        *(None, "<|im_end|>", "<|im_end|>"),
    ),
    "mistral": (["<s>", "</s>"], "<s>", "</s>", "</s>"),
    "gemma": (
        ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"],
        *("<bos>", "<eos>", "<end_of_turn>"),
    ),
    "zephyr": (["<s>", "</s>"], "<s>", "</s>", "</s>"),
    "phi3": (
        ["<s>", "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"],
        *("<s>", "<|endoftext|>", "<|end|>"),
    ),
    "qwen3": (["<|im_start|>", "<|im_end|>"], None, "<|im_end|>", "<|im_end|>"),
    "demo": (
        ["<|bos|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"],
        *("<|bos|>", "<|end|>", "<|end|>"),
    ),
}
# Llama 3 and Qwen keep line breaks together, others split them as GPT-2 does.
TIKTOKEN_LIKE = ("llama3", "chatml", "qwen3")
LINE_BREAKS_TOGETHER = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CORPUS = [
    "What does a wire transfer cost? Domestic wires cost 18 dollars.",
    "You are the support assistant of a bank. You are a helpful assistant.\nuser system",
    "system\n\nuser\n\nassistant\n\nuser\n\nassistant",
    "How do I open an account? Open it online with a photo of your papers, please.\n\n",
]


def make_model_folder(folder: Path, family: str, template: str | None = None) -> Path:
    """Write the tokenizer files of a tiny byte-level BPE with one family's tokens and template."""
    control, bos, eos, _ = CONTROL[family]
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if family in TIKTOKEN_LIKE:
        split = pre_tokenizers.Split(Regex(LINE_BREAKS_TOGETHER), "isolated")
        whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, whole])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[AddedToken(t, special=True, rstrip=family == "phi3") for t in control],
    )
    tokenizer.train_from_iterator(CORPUS * 4, trainer)
    # As published tokenizers do: it would add BOS, and it trims white space off the offsets.
    first = bos or eos
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=True),
            processors.TemplateProcessing(
                single=f"{first} $A", special_tokens=[(first, tokenizer.token_to_id(first))]
            ),
        ]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bos,
        "eos_token": {"content": eos, "special": True, "__type": "AddedToken"},
        "chat_template": TEMPLATES[family] if template is None else template,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def add_weights(folder: Path, max_positions: int = 512) -> Path:
    """Make a folder with tokenizer files a whole, tiny Llama."""
    import numpy as np
    from safetensors.numpy import save_file

    from pipeline.models.architecture import read_shape

    vocab = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "hidden_act": "silu",
        "vocab_size": vocab,
        "max_position_embeddings": max_positions,
    }
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {name: np.zeros(shape, np.float32) for name, shape in read_shape(folder).tensors()}
    save_file(tensors, folder / "model.safetensors")
    return folder


def add_random_weights(folder: Path, *, seed: int = 1, **changes: object) -> Path:
    """Make a folder with tokenizer files a decoder of random weights whose answers differ.

    changes: fields of config.json.
    """
    import numpy as np
    from safetensors.numpy import save_file

    from pipeline.models.architecture import read_shape

    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "vocab_size": Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size(),
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 4,
        **changes,
    }
    (folder / "config.json").write_text(json.dumps(config))
    random = np.random.default_rng(seed)
    tensors = {
        name: random.normal(1 if "norm" in name else 0, 0.2, shape).astype(np.float32)
        for name, shape in read_shape(folder).tensors()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def edit(name: str, **changes: object) -> Callable[[Path], object]:
    """A change to a folder: sets keys of a JSON file; ... removes one."""

    def change(folder: Path) -> None:
        file = folder / name
        content = json.loads(file.read_text()) | changes
        file.write_text(json.dumps({k: v for k, v in content.items() if v is not ...}))

    return change
