"""Output rows of tokens that a model was never trained on are found, and no others."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from pipeline.models.architecture import LM_HEAD, read_shape
from pipeline.models.output_rows import untrained_tokens
from tests.unit.model_folders import add_random_weights, make_model_folder

ALIKE = [3, 50, 51, 52, 200, 370]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return add_random_weights(make_model_folder(tmp_path, "demo"))


def change(folder: Path, rows: dict[int, np.ndarray], dtype: str = "float32") -> None:
    from safetensors.numpy import load_file

    tensors = load_file(folder / "model.safetensors")
    for row, value in rows.items():
        tensors[LM_HEAD][row] = value
    if dtype == "bfloat16":
        import torch
        from safetensors.torch import save_file as save

        save(
            {n: torch.tensor(t).bfloat16() for n, t in tensors.items()},
            folder / "model.safetensors",
        )
        return
    save_file({n: t.astype(dtype) for n, t in tensors.items()}, folder / "model.safetensors")


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_rows_that_are_alike_are_found(folder: Path, dtype: str) -> None:
    random = np.random.default_rng(2)
    common = random.normal(0, 0.2, 64)
    change(
        folder,
        {row: common * (1 + row / 400) + random.normal(0, 0.002, 64) for row in ALIKE},
        dtype,
    )
    counts = {7: 900, 3: 5, 200: 80, 370: 1, 60_000: 2}
    assert untrained_tokens(folder, read_shape(folder), counts) == [200, 3, 370]


def test_a_row_that_a_short_training_moved_is_not_among_them(folder: Path) -> None:
    """As <|im_end|> of SmolLM2-135M-Instruct, which ends its answers with it."""
    random = np.random.default_rng(2)
    common = random.normal(0, 0.2, 64)
    rows = {row: common + random.normal(0, 0.003, 64) for row in ALIKE}
    moved = common + random.normal(0, 0.025, 64)
    cosine = moved @ common / np.linalg.norm(moved) / np.linalg.norm(common)
    assert 0.99 < cosine < 0.995
    change(folder, {**rows, 7: moved})
    assert untrained_tokens(folder, read_shape(folder), {7: 900, 3: 5}) == [3]


def test_rows_of_a_trained_model_are_not(folder: Path) -> None:
    shape = read_shape(folder)
    assert untrained_tokens(folder, shape, dict.fromkeys(range(shape.vocab), 1)) == []
    assert untrained_tokens(folder, shape, {}) == []


def test_two_rows_that_are_alike_may_be_two_spellings(folder: Path) -> None:
    change(folder, {row: np.full(64, 0.1) for row in (5, 6)})
    assert untrained_tokens(folder, read_shape(folder), {5: 1, 6: 1}) == []


def test_empty_rows_are_untrained(folder: Path) -> None:
    change(folder, {5: np.zeros(64)})
    assert untrained_tokens(folder, read_shape(folder), {5: 1, 6: 1}) == [5]


def test_a_tied_model_has_its_embedding(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    change(folder, {row: np.full(64, 0.1) for row in ALIKE})
    assert untrained_tokens(folder, read_shape(folder), dict.fromkeys(ALIKE, 1)) == []


def test_the_bundled_model_can_say_every_token_that_text_has() -> None:
    """Bytes that no UTF-8 text has, and the token of padding, are never trained."""
    folder = Path("data/base_model")
    shape = read_shape(folder)
    found = untrained_tokens(folder, shape, dict.fromkeys(range(shape.vocab), 1))
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    names = {number: text for text, number in vocabulary.items()}
    assert {names[token] for token in found} <= {"<|pad|>", *"ÀÁõö÷øùúûüýþÿ"}
