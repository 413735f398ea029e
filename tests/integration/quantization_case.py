"""A small random Llama and a dataset rendered with its template, to quantize and export."""

import random
from pathlib import Path
from typing import Any

import torch

from pipeline.config.schema import Config, load
from pipeline.core.artifact import Artifact
from pipeline.data.dataset import Row, write_split
from pipeline.models.chat.renderer import Chat
from pipeline.orchestration.compose import compose
from tests.made_artifacts import make_artifact
from tests.unit.model_folders import edit, make_model_folder


def configure(*overrides: str) -> Config:
    small = ["quantize.calibration.rows=16", "quantize.calibration.batch_size=8"]
    return load(compose([*small, "evaluate.max_new_tokens=8", *overrides]))


def conversation(number: int) -> list[dict[str, str]]:
    words = random.Random(number).choices(
        ["wire", "account", "card", "loan", "open", "fee", "limit", "branch"], k=5
    )
    return [
        {"role": "user", "content": f"How {' '.join(words[:3])}?"},
        {"role": "assistant", "content": f"Call {' '.join(words[3:])} {number}."},
    ]


def row(chat: Chat, number: int) -> Row:
    messages: Any = conversation(number)
    rendered = chat.render(messages)
    return Row(
        messages,
        rendered.ids,
        rendered.mask,
        f"made.jsonl:{number}",
        chat.prompt(messages[:-1]),
        messages[-1]["content"],
    )


def make_model(folder: Path, family: str = "Llama", **settings: Any) -> Path:
    """A random model of two layers; family: the beginning of transformers' class names."""
    from pipeline.optimization import ptq as modelopt

    modelopt.modelopt()  # before transformers, as the stages do
    import transformers

    make_model_folder(folder, "demo")
    torch.manual_seed(0)
    vocabulary = 64 * -(-Chat.load(folder).vocab_size // 64)
    config = getattr(transformers, f"{family}Config")(
        hidden_size=256,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=vocabulary,
        max_position_embeddings=128,
        bos_token_id=0,
        eos_token_id=4,
        **{"tie_word_embeddings": False, **settings},
    )
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    for name, weight in model.named_parameters():
        if "norm" in name or name.endswith(
            "bias"
        ):  # ones and zeros would hide what is done to them
            torch.nn.init.uniform_(weight, 0.5, 1.5)
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


def make_inputs(folder: Path, **changes: object) -> dict[str, Artifact]:
    """A Llama, and a dataset rendered with its template. changes: fields of config.json."""
    model = make_model(folder / "model")
    edit("config.json", **changes)(model)
    chat = Chat.load(model)
    dataset = folder / "dataset"
    chat.save(dataset / "tokenizer")
    for name, numbers in (("train", range(24)), ("validation", range(24, 30))):
        write_split(dataset, name, [row(chat, number) for number in numbers])
    write_split(dataset, "test", [row(chat, number) for number in range(30, 42)])
    return {
        "prepare": artifact_of(dataset, folder / "made", "prepare", "dataset"),
        "merge": artifact_of(model, folder / "made", "merge", "hf_checkpoint"),
    }


def artifact_of(
    content: Path, place: Path, stage: str, kind: str, config: dict[str, Any] | None = None
) -> Artifact:
    """place/stage, with a copy of the files in a folder. config: what it was made with."""
    files = {
        str(file.relative_to(content)): file.read_bytes()
        for file in content.rglob("*")
        if file.is_file()
    }
    return make_artifact(place, stage, kind, files=files, config=config)
