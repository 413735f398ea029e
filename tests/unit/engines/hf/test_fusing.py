"""Merged products give what the single ones give; kernels are compiled on GPUs (tests/gpu)."""

from pathlib import Path

import pytest
import torch

from pipeline.engines.hf import fusing
from pipeline.models import hf_model
from tests.unit.engines.hf.test_session import FAMILIES, PROMPTS, make_adapter, make_model


@pytest.fixture(autouse=True)
def _not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_the_same(tmp_path: Path, family: str) -> None:
    folder = make_model(tmp_path, family)
    model = hf_model.load_model(folder, dtype="float32")
    wanted = hf_model.logits(model, PROMPTS[3])
    size = sum(p.numel() for p in model.parameters())
    fusing.fuse(model)
    products = []
    for layer in model.model.layers:
        for name in ("q_proj", "k_proj", "v_proj"):
            place = getattr(layer.self_attn, name)
            place.register_forward_hook(lambda m, *_: products.append(m))
    torch.testing.assert_close(hf_model.logits(model, PROMPTS[3]), wanted, atol=1e-4, rtol=0)
    assert len(products) == 3 * len(model.model.layers)
    assert sum(p.numel() for p in model.parameters()) == size
    first = model.model.layers[0]
    weights = [getattr(first.self_attn, f"{n}_proj").weight for n in "qkv"]
    assert len({w.untyped_storage().data_ptr() for w in weights}) == 1  # parts of one tensor
    assert first.mlp.forward.__module__ == fusing.__name__


def test_an_adapter_on_some_layers_has_its_effect(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model")
    for parts in (("k_proj",), ("q_proj", "up_proj"), ("gate_proj", "v_proj")):
        adapter = make_adapter(tmp_path / parts[0], folder, 1, parts)
        load = hf_model.load_model(folder, dtype="float32")
        wanted = hf_model.logits(hf_model.with_adapter(load, adapter), PROMPTS[3])
        model = hf_model.load_model(folder, dtype="float32")
        fusing.fuse(model)
        found = hf_model.logits(hf_model.with_adapter(model, adapter), PROMPTS[3])
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)
