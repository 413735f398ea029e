"""Every record of the table, and what a family is asked before a stage runs."""

from dataclasses import replace

import pytest

from pipeline.core.errors import DataError
from pipeline.models.families import FAMILIES, check_stage, family_of
from pipeline.models.families.llama import LLAMA
from pipeline.models.families.record import Family
from tests.unit.stages.test_quantize import LLAMA as SHAPE


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_the_tensors_of_a_layer_have_one_place_in_each_library(family: Family) -> None:
    layer = family.layer
    parts = [part for linear in layer.linears for part in linear.parts]
    assert len({part.hf for part in parts}) == len(parts)
    assert len({linear.megatron for linear in layer.linears}) == len(layer.linears)
    joined = [part.hf for _, _, parts in layer.qnemo_linears() for part in parts]
    assert joined == [part.hf for part in parts]
    norms = {norm.hf for norm in layer.norms}
    assert {linear.after for linear in layer.linears} - {None} <= norms


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_an_architecture_is_of_one_family(family: Family) -> None:
    for name in family.architectures:
        assert family_of(["Unknown", name]) is family
    assert family_of(["Unknown"]) is None


def test_biases_follow_the_shape() -> None:
    biases = {
        qkv_bias: [n for n, _ in replace(SHAPE, qkv_bias=qkv_bias).layer_tensors() if "bias" in n]
        for qkv_bias in (False, True)
    }
    assert biases[False] == []
    assert biases[True] == [f"self_attn.{letter}_proj.bias" for letter in "qkv"]


def test_a_stage_that_a_family_cannot_go_through_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check_stage("llama", "import", "export")
    closed = LLAMA.named("closed", "Closed", "ClosedForCausalLM", refused={"export": "use hf"})
    monkeypatch.setitem(FAMILIES._records, "closed", closed)
    check_stage("closed", "import")
    with pytest.raises(DataError, match="stage=export does not take Closed models: use hf"):
        check_stage("closed", "import", "export")
