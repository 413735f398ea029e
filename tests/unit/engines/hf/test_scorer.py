"""Scores are those of sentence-transformers' CrossEncoder, and of transformers."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
)

from pipeline.config.defaults import default_tree
from pipeline.config.engine import EngineConfig
from pipeline.core.errors import ConfigError, DataError
from pipeline.engines.hf.embedder import embeds
from pipeline.engines.hf.scorer import HfScorer, activation_of, scores
from pipeline.engines.opening import describe, open_engine
from pipeline.serving.app import create_app
from tests.unit.serving.asgi import ask_all

WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *(f"w{i}" for i in range(60))]
QUERY = "w1 w2 w3"
DOCUMENTS = ["w4 w5", "w1 w2 w3 w9 w10 w11 w12", "w30", " ".join(f"w{i}" for i in range(50))]
SIZES: dict[str, Any] = {
    "vocab_size": len(WORDS), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 48, "num_labels": 1, "initializer_range": 0.5, "pad_token_id": 0,
}  # fmt: skip


def make(folder: Path, kind: str, **more: Any) -> Path:
    """A tiny cross-encoder with random weights, as sentence-transformers' users have them."""
    torch.manual_seed(1)
    if kind == "bert":
        config: Any = BertConfig(**SIZES, max_position_embeddings=40, **more)
        model: Any = BertForSequenceClassification(config)
    else:
        config = XLMRobertaConfig(**SIZES, max_position_embeddings=41, type_vocab_size=1, **more)
        model = XLMRobertaForSequenceClassification(config)
    model.save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    pair = "[CLS] $A [SEP] $B:1 [SEP]:1" if kind == "bert" else "[CLS] $A [SEP] [SEP] $B [SEP]"
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair=pair, special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if kind == "bert" else [])]
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", model_max_length=40, model_input_names=names
    ).save_pretrained(folder)
    return folder


def settings(name: str = "auto") -> EngineConfig:
    return EngineConfig.model_validate(default_tree()["engine"] | {"name": name})


@pytest.mark.parametrize("kind", ["bert", "xlm-roberta"])
def test_reranking_is_that_of_sentence_transformers(tmp_path: Path, kind: str) -> None:
    from sentence_transformers import CrossEncoder

    folder = make(tmp_path, kind)
    reference = CrossEncoder(str(folder), device="cpu", local_files_only=True)
    wanted = reference.rank(QUERY, DOCUMENTS)
    logits = reference.predict(
        [(QUERY, text) for text in DOCUMENTS], activation_fn=torch.nn.Identity()
    )
    served = open_engine(folder, max_queue=9, description=describe(folder, settings()))
    app = create_app(
        served.engine, served.chat, model="ranker", slots=1, activation=activation_of(folder)
    )
    bodies: list[tuple[str, dict[str, Any]]] = [
        ("rerank", {"query": QUERY, "documents": DOCUMENTS, "truncate_prompt_tokens": -1}),
        ("score", {"text_1": QUERY, "text_2": DOCUMENTS[:3], "use_activation": False}),
        ("score", {"text_1": QUERY, "text_2": DOCUMENTS[3]}),
    ]
    try:
        answer, scored, long = ask_all(
            app, *(("POST", f"/v1/{route}", {"json": body}) for route, body in bodies)
        )
    finally:
        served.engine.close()
    assert answer.status_code == 200, answer.text
    found = answer.json()["results"]
    assert [result["index"] for result in found] == [entry["corpus_id"] for entry in wanted]
    assert [result["relevance_score"] for result in found] == pytest.approx(
        [float(entry["score"]) for entry in wanted], abs=1e-6
    )
    assert [entry["score"] for entry in scored.json()["data"]] == pytest.approx(
        logits[:3].tolist(), abs=1e-5
    )
    assert len({round(entry["score"], 4) for entry in scored.json()["data"]}) == 3
    assert long.json()["error"]["code"] == "context_length_exceeded"


def test_padding_changes_no_score(tmp_path: Path) -> None:
    folder = make(tmp_path, "bert")
    rows = [[1, 5, 2, 9, 10, 11, 2], [1, 6, 2, 7, 2], [1, 8, 9, 10, 2, 30, 31, 32, 33, 2]]
    types = [[int(i > row.index(2)) for i in range(len(row))] for row in rows]
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    engine = HfScorer(folder, max_queue=2)
    found = asyncio.run(engine.score(rows, types))
    engine.close()
    with torch.inference_mode():
        alone = [
            model(torch.tensor([row]), token_type_ids=torch.tensor([kinds])).logits.item()
            for row, kinds in zip(rows, types, strict=True)
        ]
    assert found == pytest.approx(alone, abs=1e-5)


def test_a_reranker_is_no_embedding_model_and_needs_its_engine(tmp_path: Path) -> None:
    folder = make(tmp_path, "bert")
    (folder / "modules.json").write_text("[]")  # newer versions of sentence-transformers have one
    assert (scores(folder), embeds(folder)) == (True, False)
    with pytest.raises(ConfigError, match=r"is a reranker: serve it with engine\.name=hf"):
        describe(folder, settings("onnxruntime"))


def test_a_model_with_several_labels_is_refused(tmp_path: Path) -> None:
    folder = make(tmp_path, "bert")
    config = json.loads((folder / "config.json").read_text())
    config |= {"id2label": {"0": "a", "1": "b"}, "label2id": {"a": 0, "b": 1}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match=r"config.json names 2 labels \(id2label\)"):
        HfScorer(folder, max_queue=1)


@pytest.mark.parametrize(("file", "content", "name"), [
    (None, None, "Sigmoid"),
    ("config.json", {"sentence_transformers": {
        "activation_fn": "torch.nn.modules.linear.Identity"}}, "Identity"),
    ("config.json", {"sbert_ce_default_activation_function":
        "torch.nn.modules.linear.Identity"}, "Identity"),
    ("config_sentence_transformers.json", {
        "activation_fn": "torch.nn.modules.activation.Sigmoid"}, "Sigmoid"),
    ("config.json", {"sentence_transformers": {"activation_fn": "mine.Odd"}}, None),
])  # fmt: skip
def test_the_folder_says_what_makes_a_score_of_a_logit(
    tmp_path: Path, file: str | None, content: Any, name: str | None
) -> None:
    (tmp_path / "config.json").write_text("{}")
    if file:
        (tmp_path / file).write_text(json.dumps(content))
    if name:
        assert activation_of(tmp_path) == name
        return
    with pytest.raises(DataError, match="scores with Odd, which is not supported"):
        activation_of(tmp_path)
