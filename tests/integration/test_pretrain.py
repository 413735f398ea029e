"""The script that makes the bundled base model: a few steps of it, and its export."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tools.pretrain import corpus
from tools.pretrain.corpus import Part, make_rows
from tools.pretrain.model import make
from tools.pretrain.settings import Settings


def test_a_model_is_made_from_nothing(tmp_path: Path) -> None:
    settings = Settings(
        hidden_size=64,
        layers=2,
        heads=4,
        key_value_heads=2,
        ffn_size=128,
        vocabulary=400,
        sequence_length=64,
        corpus_tokens=20_000,
        least_occurrences=0,
        batch_size=8,
        micro_batch_size=8,
        steps=30,
        warmup_steps=4,
        learning_rate=1e-2,
    )
    make(settings, tmp_path, command="python -m tools.pretrain")
    hf = tmp_path / "hf"
    made = json.loads((hf / "provenance.json").read_text())
    assert made["final_loss"] < made["loss_curve"][0][1] - 1
    assert set(made["sha256"]) >= {"config.json", "model.safetensors", "tokenizer.json"}
    assert {path.name for path in tmp_path.iterdir()} == {"hf", "loss_curve.png"}

    from pipeline.models import hf_model

    # The exported model, in bfloat16, predicts text as the trained one did.
    model = hf_model.load_model(hf, dtype="float32")
    tokens = settings.corpus_tokens // corpus.PARTS
    part = Part(settings.generator, hf, settings.seed, tokens, settings.conversation_share)
    rows = make_rows(part, length=settings.sequence_length)
    total = 0.0
    for row in rows.ids[: 65 * 40].reshape(40, 65):
        logits = hf_model.logits(model, row[:-1].tolist())
        target = torch.from_numpy(row[1:].astype(np.int64))
        total += float(torch.nn.functional.cross_entropy(logits, target)) / 40
    assert total == pytest.approx(made["final_loss"], abs=0.3)

    # A model can be trained on, with its tokenizer, from where it was.
    on = settings.model_copy(
        update={"start": hf, "vocabulary": Settings().vocabulary, "steps": 6, "warmup_steps": 1}
    )
    make(on, tmp_path / "on", command="python -m tools.pretrain --start")
    further = json.loads((tmp_path / "on/hf/provenance.json").read_text())
    assert further["loss_curve"][0][1] < made["loss_curve"][0][1] - 1
    assert further["start"]["loss_curve"] == made["loss_curve"]
    same = (tmp_path / "on/hf/tokenizer.json").read_bytes()
    assert same == (hf / "tokenizer.json").read_bytes()
    assert further["sha256"]["model.safetensors"] != made["sha256"]["model.safetensors"]
