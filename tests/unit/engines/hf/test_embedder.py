"""Embeddings are those of the model alone with each text, pooled as its folder says."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, BertConfig, BertModel, RobertaConfig, RobertaModel

from pipeline.core.errors import DataError
from pipeline.engines.base import EngineFailed, QueueFull, Sampling
from pipeline.engines.hf import encoder
from pipeline.engines.hf.embedder import HfEmbedder, embeds

TEXTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14], [5, 6, 7, 8]]
SIZES = {
    "vocab_size": 100,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(1)
    BertModel(BertConfig(**SIZES, initializer_range=0.5)).save_pretrained(folder)
    return folder


def copy(model: Path, folder: Path) -> Path:
    folder.mkdir()
    for file in model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def add_modules(folder: Path, pooling: dict[str, bool], *names: str) -> Path:
    """The files that sentence-transformers leaves beside a model."""
    kinds = [f"sentence_transformers.models.{name}" for name in names]
    modules = [{"path": f"{i}_{kind[29:]}", "type": kind} for i, kind in enumerate(kinds)]
    (folder / "modules.json").write_text(json.dumps(modules))
    for module in modules:
        (folder / module["path"]).mkdir()
        (folder / module["path"] / "config.json").write_text(json.dumps(pooling))
    return folder


def states(model: Path) -> list[torch.Tensor]:
    """The last hidden states [tokens, size] of each text by itself."""
    alone = AutoModel.from_pretrained(model).eval()
    with torch.inference_mode():
        return [alone(torch.tensor([ids])).last_hidden_state[0] for ids in TEXTS]


def embed(folder: Path, texts: Sequence[Sequence[int]] = TEXTS) -> torch.Tensor:
    engine = HfEmbedder(folder, max_queue=1)
    found = asyncio.run(engine.embed(texts))
    engine.close()
    return torch.tensor(found)


def test_without_further_files_it_is_the_mean_of_length_1(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    means = torch.stack([state.mean(0) for state in states(model)])
    wanted = torch.nn.functional.normalize(means, dim=-1)
    assert torch.allclose(embed(model), wanted, atol=1e-5)
    monkeypatch.setattr(encoder, "BATCH_TOKENS", 7)  # several passes give the same
    assert torch.allclose(embed(model), wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("mode", "pick"),
    [
        ("pooling_mode_mean_tokens", lambda state: state.mean(0)),
        ("pooling_mode_cls_token", lambda state: state[0]),
        ("pooling_mode_lasttoken", lambda state: state[-1]),
    ],
)
def test_pooling_is_what_the_folder_says(model: Path, tmp_path: Path, mode: str, pick: Any) -> None:
    pooling = {mode: True, "pooling_mode_max_tokens": False, "word_embedding_dimension": 32}
    folder = add_modules(copy(model, tmp_path / "m"), pooling, "Transformer", "Pooling")
    assert embeds(folder)
    assert torch.allclose(embed(folder), torch.stack([pick(s) for s in states(model)]), atol=1e-5)


@pytest.mark.parametrize(
    ("pooling", "names", "words"),
    [
        ({"pooling_mode_max_tokens": True}, ("Transformer", "Pooling"), "pooling_mode_max_tokens"),
        ({}, ("Transformer", "Pooling"), "no pooling"),
        ({}, ("Transformer", "Pooling", "Dense"), "Dense, which is not supported"),
        ({}, ("Transformer",), "names no Pooling"),
    ],
)
def test_what_cannot_be_pooled_is_refused(
    model: Path, tmp_path: Path, pooling: dict[str, bool], names: tuple[str, ...], words: str
) -> None:
    folder = add_modules(copy(model, tmp_path / "m"), pooling, *names)
    with pytest.raises(DataError, match=words):
        HfEmbedder(folder, max_queue=1)


def test_the_longest_text_is_what_the_model_or_the_folder_allows(
    model: Path, tmp_path: Path
) -> None:
    assert HfEmbedder(model, max_queue=1).max_input_len == 40
    folder = copy(model, tmp_path / "m")
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 16}')
    assert HfEmbedder(folder, max_queue=1).max_input_len == 16
    RobertaModel(RobertaConfig(**SIZES, pad_token_id=1)).save_pretrained(tmp_path / "roberta")
    longest = HfEmbedder(tmp_path / "roberta", max_queue=1).max_input_len
    assert longest == 38
    assert embed(tmp_path / "roberta", [[7] * longest]).shape == (1, 32)


def test_it_embeds_and_answers_nothing(model: Path) -> None:
    engine = HfEmbedder(model, max_queue=0)
    assert engine.features == {"embeddings"}
    with pytest.raises(EngineFailed, match="cannot generate text"):
        engine.generate([1], Sampling(1))

    async def twice() -> list[Any]:
        calls = engine.embed(TEXTS), engine.embed(TEXTS)
        return await asyncio.gather(*calls, return_exceptions=True)

    first, second = asyncio.run(twice())
    assert len(first) == len(TEXTS)
    assert isinstance(second, QueueFull)


def test_vectors_that_are_no_numbers_are_an_error(model: Path, tmp_path: Path) -> None:
    broken = AutoModel.from_pretrained(model)
    torch.nn.init.constant_(broken.embeddings.word_embeddings.weight, float("nan"))
    broken.save_pretrained(tmp_path)
    with pytest.raises(EngineFailed, match="not finite"):
        embed(tmp_path)


def test_a_decoder_embeds_only_where_its_files_say_how(tmp_path: Path) -> None:
    for name in ("LlamaForCausalLM", "GPT2LMHeadModel", "Gemma3ForConditionalGeneration"):
        (tmp_path / "config.json").write_text(json.dumps({"architectures": [name]}))
        assert not embeds(tmp_path)
    (tmp_path / "modules.json").write_text("[]")
    assert embeds(tmp_path)


@pytest.mark.parametrize("token", [100, -1])
def test_a_token_that_the_model_lacks_is_refused(model: Path, token: int) -> None:
    with pytest.raises(ValueError, match=f"has the token {token}, and the model's vocabulary"):
        embed(model, [[5], [6, token]])
