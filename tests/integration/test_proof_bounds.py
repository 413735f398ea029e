"""The proof of engines lets honest rounding pass and refuses real damage, on models of three
families and several seeds.

Damage is done to the model in PyTorch, which is the least that an engine with it would show; the
figures of real engines, and of real models, are in bench/results/proof_bounds.json.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.proof_bounds import FAMILIES, damaged, random_model, random_probes
from pipeline.core.paths import ROOT
from pipeline.engines.onnxruntime.record import BOUNDS
from pipeline.models import hf_model
from pipeline.models.divergence import divergence
from pipeline.optimization import logit_probes, ptq

RESULTS = ROOT / "bench/results/proof_bounds.json"


@pytest.fixture(scope="module", params=[(f, s) for f in FAMILIES for s in (0, 1, 2)], ids=str)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    ptq.modelopt()  # before transformers, as the stages do
    family, seed = request.param
    made = tmp_path_factory.mktemp(f"{family}{seed}")
    return random_model(made, family, seed, 0.02 if seed else 0.08)


def rounded(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """In blocks of 32 with a scale each, as ONNX Runtime's engines hold weights."""
    blocks = weight.unflatten(1, (-1, 32))
    scale = blocks.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)
    return ((blocks / scale).round() * scale).flatten(1)


def test_rounding_passes_and_damage_does_not(folder: Path) -> None:
    model: Any = hf_model.load_model(folder, dtype="float32")
    probes = random_probes(model.config.vocab_size, seed=0)
    reference = logit_probes.logits_at(model, probes)
    for precision, bits in (("int8", 8), ("int4", 4)):
        coarse: Any = hf_model.load_model(folder, dtype="float32")
        for name, weight in coarse.named_parameters():
            if name.endswith("_proj.weight"):
                weight.data = rounded(weight.data, bits)
        found = divergence(reference, logit_probes.logits_at(coarse, probes))
        assert found.loss < BOUNDS[precision].loss
        assert found.agreement > BOUNDS[precision].agreement
    wrong = damaged(model, probes, reference)
    assert len(wrong) >= 7
    for name, figures in wrong.items():
        assert figures["loss"] > 10 * BOUNDS["fp32"].loss, name
    assert divergence(reference, logit_probes.logits_at(model, probes)).loss == 0  # all restored


def test_bounds_are_those_of_the_measurements() -> None:
    """Each bound leaves room for the honest engines, and none for a damaged graph in float32."""
    found = json.loads(RESULTS.read_text())
    models = {row["model"] for row in found["models"]}
    assert "base_model" in models
    assert len(models) >= 10
    for precision, bound in BOUNDS.items():
        worst = found["summary"]["engines"][precision]
        assert worst["largest_loss"] < bound.loss / 2
        assert worst["smallest_agreement"] > bound.agreement
    for damage in found["summary"]["damages"].values():
        assert damage["smallest_loss"] > 10 * BOUNDS["fp32"].loss
