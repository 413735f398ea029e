"""Whatever a stranger's model folder holds, it is refused in a line, within seconds."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pipeline.core.errors import DataError
from pipeline.models.chat.renderer import Chat
from pipeline.models.checks import check_folder
from tests.unit.model_folders import add_weights, edit, make_model_folder

Change = Callable[[Path], object]
FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
DEEP = '{"a":' + "[" * 200_000 + "]" * 200_000 + "}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = add_weights(make_model_folder(tmp_path / "model", "demo"))
    (folder / "generation_config.json").write_text("{}")
    return folder


def refused(folder: Path) -> str:
    began = time.process_time()
    with pytest.raises(DataError) as caught:
        check_folder(folder)
    assert time.process_time() - began < 5
    assert "\n" not in str(caught.value)
    return str(caught.value)


def as_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def as_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def as_huge(file: Path) -> None:
    with file.open("r+b") as stream:
        stream.truncate(2**33)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "nested": lambda file: file.write_text(DEEP),
    "empty": lambda file: file.write_text(""),
    "binary": lambda file: file.write_bytes(bytes(range(256))),
    "a list": lambda file: file.write_text("[]"),
    "a number": lambda file: file.write_text("1e999"),
    "a long number": lambda file: file.write_text('{"a": ' + "9" * 10_000 + "}"),
    "a pipe": as_pipe,
    "a folder": as_folder,
    "huge": as_huge,
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_named(folder: Path, name: str, damage: str) -> None:
    DAMAGE[damage](folder / name)
    assert str(folder / name) in refused(folder)


def tokenizer(change: Callable[[dict], object]) -> Change:
    def apply(folder: Path) -> None:
        file = folder / "tokenizer.json"
        content = json.loads(file.read_text())
        change(content)
        file.write_text(json.dumps(content))

    return apply


def weights(length: int, content: bytes) -> Change:
    return lambda folder: (folder / "model.safetensors").write_bytes(
        length.to_bytes(8, "little") + content
    )


def index(weight_map: object) -> Change:
    def apply(folder: Path) -> None:
        file = folder / "model.safetensors.index.json"
        file.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))

    return apply


def replaced(pattern: object, content: str) -> dict:
    return {"type": "Replace", "pattern": pattern, "content": content}


EXPLODING = {"type": "Sequence", "normalizers": [replaced({"String": "e"}, "ee")] * 60}
PREFIXED = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "x" * 10**5}] * 9}
EMPTY = {"type": "Sequence", "normalizers": [replaced({"Regex": "()"}, "x" * 50)] * 3}
TEXTS = [f"<|{i}|>" for i in range(300_000)]
HOSTILE: dict[str, tuple[Change, str]] = {
    "code from the hub for attention": (
        edit("config.json", attn_implementation="someone/kernels:flash"),
        "names code on the hub",
    ),
    "the same within": (
        edit("config.json", _attn_implementation={"": "someone/kernels"}),
        "names code on the hub",
    ),
    "code in the generation_config": (
        edit("generation_config.json", auto_map={"GenerationConfig": "a.B"}),
        "has auto_map",
    ),
    "endless layers": (edit("config.json", num_hidden_layers=10**12), "is too large"),
    "a huge vocabulary": (edit("config.json", vocab_size=10**30), "is too large"),
    "a negative size": (edit("config.json", hidden_size=-8), "should be a whole number above 0"),
    "a size that is no number": (
        edit("config.json", hidden_size=float("nan")),
        "should be a whole number above 0",
    ),
    "a rotary base that is no number": (
        edit("config.json", rope_theta=float("nan")),
        "should be a number above 0",
    ),
    "an infinite epsilon": (
        edit("config.json", rms_norm_eps=float("inf")),
        "should be a number above 0",
    ),
    "a text for a switch": (
        edit("config.json", tie_word_embeddings="false"),
        "should be true or false",
    ),
    "a type of weights that is none": (
        edit("config.json", torch_dtype="os.system"),
        "is not a type of weights",
    ),
    "two types of weights": (
        edit("config.json", torch_dtype="float32", dtype="bfloat16"),
        "disagree",
    ),
    "two kinds of scaling": (
        edit("config.json", rope_scaling={"rope_type": "default", "type": "yarn"}),
        "disagree",
    ),
    "a scaling that is a list": (edit("config.json", rope_scaling=[1]), "should be an object"),
    "a normalizer that explodes": (tokenizer(lambda t: t.update(normalizer=EXPLODING)), "as long"),
    "a normalizer that matches nothing": (
        tokenizer(lambda t: t.update(normalizer=EMPTY)),
        "as long",
    ),
    "a normalizer that prepends": (
        tokenizer(lambda t: t.update(normalizer=PREFIXED)),
        "as long",
    ),
    "a regular expression that tries everything": (
        tokenizer(
            lambda t: t.update(
                pre_tokenizer={
                    "type": "Split",
                    "pattern": {"Regex": "(a+)+$"},
                    "behavior": "Isolated",
                    "invert": False,
                }
            )
        ),
        "cannot be used",
    ),
    "a regular expression that is none": (
        tokenizer(lambda t: t.update(pre_tokenizer={"type": "Split", "pattern": {"Regex": "(("}})),
        "is not a tokenizer",
    ),
    "a normalizer that is none": (
        tokenizer(lambda t: t.update(normalizer={"type": "None"})),
        "is not a tokenizer",
    ),
    "added tokens without end": (
        tokenizer(
            lambda t: t.update(
                added_tokens=[{"id": i, "content": text} for i, text in enumerate(TEXTS)]
            )
        ),
        "declares 300000 added tokens",
    ),
    "added tokens in the configuration": (
        edit(
            "tokenizer_config.json",
            added_tokens_decoder={
                str(i): {"content": text} for i, text in enumerate(TEXTS[:30_000])
            },
        ),
        "declares 30000 added tokens",
    ),
    "an added token as long as a book": (
        tokenizer(lambda t: t["added_tokens"].append({"id": 3, "content": "x" * 10**6})),
        "added token of 1000000 characters",
    ),
    "an id that is a text": (
        tokenizer(lambda t: t["model"]["vocab"].update(a="x")),
        "should be a whole number",
    ),
    "a negative id": (
        tokenizer(lambda t: t["model"]["vocab"].update(a=-1)),
        "should be a whole number",
    ),
    "a dropout": (tokenizer(lambda t: t["model"].update(dropout=0.5)), "has a dropout"),
    "a declared id that is a text": (
        edit("tokenizer_config.json", added_tokens_decoder={"x": {"content": "a"}}),
        "added_tokens_decoder has 'x'",
    ),
    "declared tokens in a list": (
        edit("tokenizer_config.json", added_tokens_decoder=[1]),
        "should be an object",
    ),
    "a header longer than the file": (weights(2**40, b"{}"), "is not a safetensors file"),
    "a nested header": (weights(len(DEEP), DEEP.encode()), "damaged header"),
    "a header of another kind": (weights(2, b"[]"), "damaged header"),
    "a size that is a fraction": (
        weights(63, b'{"a":{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}}       ' + bytes(4)),
        "damaged header",
    ),
    "a weight file elsewhere": (index({"a": "/etc/passwd"}), "does not exist though"),
    "a weight file above": (index({"a": "../model/model.safetensors"}), "does not exist though"),
    "a weight file with a NUL": (index({"a": "a\0b"}), "does not exist though"),
    "a weight file in a list": (index({"a": ["b"]}), "should be a file's name"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_folder_is_refused(folder: Path, name: str) -> None:
    change, message = HOSTILE[name]
    change(folder)
    assert message in refused(folder)


DISAGREE: dict[str, tuple[Change, str]] = {
    "a token that only tokenizer_config.json has": (
        edit("tokenizer_config.json", additional_special_tokens=["<|new|>"]),
        "token '<|new|>' has id 379, but the model's embedding has 379 rows",
    ),
    "a token that only its decoder has": (
        edit("tokenizer_config.json", added_tokens_decoder={"379": {"content": "<|new|>"}}),
        "token '<|new|>' has id 379, but the model's embedding has 379 rows",
    ),
    "a token with another id": (
        edit("tokenizer_config.json", added_tokens_decoder={"7": {"content": "<|end|>"}}),
        "declares token '<|end|>' with id 7, but its id is 4",
    ),
    "a token that only added_tokens.json has": (
        lambda folder: (folder / "added_tokens.json").write_text('{"<|new|>": 379}'),
        "declares token '<|new|>', which tokenizer.json does not have",
    ),
    "another id in added_tokens.json": (
        lambda folder: (folder / "added_tokens.json").write_text('{"<|end|>": 7}'),
        "declares token '<|end|>' with id 7, but its id is 4",
    ),
    "another special token": (
        lambda folder: (folder / "special_tokens_map.json").write_text('{"eos_token": "<|bos|>"}'),
        "eos_token is '<|bos|>', and tokenizer_config.json has '<|end|>'",
    ),
}


@pytest.mark.parametrize("name", DISAGREE)
def test_facts_of_two_files_must_agree(folder: Path, name: str) -> None:
    change, message = DISAGREE[name]
    change(folder)
    assert message in refused(folder)


def test_facts_that_agree_are_taken(folder: Path) -> None:
    (folder / "added_tokens.json").write_text('{"<|end|>": 4}')
    (folder / "special_tokens_map.json").write_text('{"eos_token": "<|end|>", "pad_token": null}')
    edit("tokenizer_config.json", added_tokens_decoder={"4": {"content": "<|end|>"}})(folder)
    edit("config.json", torch_dtype="bfloat16", dtype="bfloat16")(folder)
    check_folder(folder)


def test_an_output_layer_of_a_tied_model_must_be_its_embedding(folder: Path) -> None:
    edit("config.json", tie_word_embeddings=True)(folder)
    check_folder(folder)  # it has the same zeros twice
    content = load_file(folder / "model.safetensors")
    content["lm_head.weight"][-1, -1] = np.float32(1)
    save_file(content, folder / "model.safetensors")
    assert "lm_head.weight is not the embedding" in refused(folder)


def test_the_configuration_ends_answers_where_no_generation_config_does(folder: Path) -> None:
    edit("config.json", eos_token_id=[7, 4])(folder)
    assert Chat.load(folder).stop_ids == [4]
    (folder / "generation_config.json").unlink()
    assert Chat.load(folder).stop_ids == [4, 7]
