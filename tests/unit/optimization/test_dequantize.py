"""Each format packed here by hand, number by number, and unpacked by the pipeline."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from pipeline.models.architecture import EMBEDDING, LM_HEAD, Shape
from pipeline.models.hf_model import WeightReader
from pipeline.optimization import dequantize as dequantize_module
from pipeline.optimization.dequantize import (
    Rounding,
    beyond_rounding,
    compare,
    dequantize,
    difference,
    rounded,
)
from pipeline.optimization.formats import FORMATS, Storage, most_excess
from tests.unit.stages.test_quantize import LLAMA

Matrix = list[list[int]]


def storage(format: str) -> Storage:
    found = FORMATS[format].storage
    assert found is not None
    return found


def matrices(low: int, high: int) -> st.SearchStrategy[Matrix]:
    """Of an even number of rows and of columns, with numbers from low to high."""
    sizes = st.tuples(st.integers(1, 3), st.integers(1, 4))
    return sizes.flatmap(
        lambda size: st.lists(
            st.lists(st.integers(low, high), min_size=2 * size[1], max_size=2 * size[1]),
            min_size=2 * size[0],
            max_size=2 * size[0],
        )
    )


def e2m1(code: int) -> float:
    """What four bits stand for: a sign, two bits of exponent with bias 1, one of mantissa."""
    sign, exponent, mantissa = (-1) ** (code >> 3), code >> 1 & 3, code & 1
    return sign * (mantissa / 2 if exponent == 0 else 2 ** (exponent - 1) * (1 + mantissa / 2))


@settings(deadline=None)  # the first call imports
@given(matrices(-8, 7), st.integers(0, 2**32))
def test_awq_packs_two_rows_into_a_byte(rows: Matrix, seed: int) -> None:
    # The even row in the low half, the odd one in the high half, in two's complement.
    packed = torch.tensor(
        [
            [(low % 16) | (high % 16) << 4 for low, high in zip(even, odd, strict=True)]
            for even, odd in zip(rows[::2], rows[1::2], strict=True)
        ],
        dtype=torch.uint8,
    )
    draw = torch.Generator().manual_seed(seed)
    scale = torch.rand(len(rows), len(rows[0]) // 2, generator=draw)  # groups of two columns
    prescale = torch.rand(len(rows[0]), generator=draw)
    expected = torch.tensor(
        [
            [v * float(scale[o, i // 2]) * float(prescale[i]) for i, v in enumerate(row)]
            for o, row in enumerate(rows)
        ]
    )
    for name in ("int4_awq", "w4a8_awq"):
        grouped = replace(storage(name), group=2)
        second = torch.tensor([3.0]) if grouped.second_scale else None
        for stored in (packed, packed.view(torch.int8)):
            weight = dequantize(grouped, stored, scale, second, prescale)
            assert torch.allclose(weight, expected)


@settings(deadline=None)  # the first call imports
@given(matrices(0, 15), st.integers(0, 2**32))
def test_nvfp4_packs_two_columns_into_a_byte(codes: Matrix, seed: int) -> None:
    packed = torch.tensor(
        [[low | high << 4 for low, high in zip(row[::2], row[1::2], strict=True)] for row in codes],
        dtype=torch.uint8,
    )
    draw = torch.Generator().manual_seed(seed)
    scale = torch.rand(len(codes), len(codes[0]) // 2, generator=draw).mul(448)
    scale = scale.to(torch.float8_e4m3fn)
    second = torch.tensor(0.37)
    expected = torch.tensor(
        [
            [e2m1(code) * float(scale[o, i // 2]) * float(second) for i, code in enumerate(row)]
            for o, row in enumerate(codes)
        ]
    )
    grouped = replace(storage("nvfp4"), group=2)
    for number in (second, second.reshape(1)):
        weight = dequantize(grouped, packed, scale, number, None)
        assert torch.allclose(weight, expected)


@settings(deadline=None)  # the first call imports
@given(matrices(-128, 127), st.integers(0, 2**32))
def test_smoothquant_has_a_scale_a_row(rows: Matrix, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    scale = torch.rand(len(rows), generator=draw)
    prescale = torch.rand(len(rows[0]), generator=draw).bfloat16()
    stored = torch.tensor(rows, dtype=torch.int8)
    expected = torch.tensor(
        [
            [v * float(scale[o]) * float(prescale[i]) for i, v in enumerate(row)]
            for o, row in enumerate(rows)
        ]
    )
    assert torch.allclose(dequantize(storage("int8_sq"), stored, scale, None, prescale), expected)


def test_fp8_has_one_scale() -> None:
    stored = torch.tensor([[448.0, -0.015625], [2.0, 0.0]]).to(torch.float8_e4m3fn)
    for scale in (torch.tensor(0.5), torch.tensor([0.5])):
        weight = dequantize(storage("fp8"), stored, scale, None, None)
        assert weight.tolist() == [[224.0, -0.0078125], [1.0, 0.0]]


def test_comparison_tells_direction_and_size_apart() -> None:
    source = torch.tensor([3.0, 4.0])
    doubled = difference(torch.tensor([6.0, 8.0]), source)
    assert doubled == pytest.approx({"cosine": 1.0, "error": 1.0, "scale": 2.0})
    assert difference(torch.tensor([-4.0, 3.0]), source)["cosine"] == 0.0
    assert difference(torch.zeros(2), torch.zeros(2)) == {"cosine": 1.0, "error": 0.0, "scale": 1.0}
    nothing = difference(source, torch.zeros(2))
    assert nothing == {"cosine": 0.0, "error": math.inf, "scale": 0.0}
    assert math.isnan(difference(torch.tensor([math.nan, 1.0]), source)["cosine"])


@settings(deadline=None)  # the first call imports
@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 2**32))
def test_comparison_does_not_depend_on_blocks(size: int, block: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    ours, theirs = (torch.randn(size, generator=draw, dtype=torch.float64) for _ in range(2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(dequantize_module._BLOCK, "cpu", block)
        found = difference(ours, theirs)
    cosine = torch.nn.functional.cosine_similarity(ours, theirs, dim=0)
    assert found["cosine"] == pytest.approx(float(cosine))
    assert found["error"] == pytest.approx(float((ours - theirs).norm() / theirs.norm()))


def test_small_differences_in_large_tensors_are_seen() -> None:
    theirs = torch.ones(2**23, dtype=torch.bfloat16)
    ours = theirs.clone()
    ours[-1] = 2
    assert difference(ours, theirs)["error"] == pytest.approx(2**-11.5)


def made_source(folder: Path, shape: Shape) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    source = {name: torch.randn(size, generator=draw) for name, size in shape.tensors()}
    save_file(source, folder / "model.safetensors")
    return source


def test_every_form_is_compared_with_every_weight(tmp_path: Path) -> None:
    shape = replace(LLAMA, layers=1)
    source = made_source(tmp_path, shape)

    class Made:
        """The source's weights times a factor, but for its norms."""

        def __init__(self, factor: float) -> None:
            self.factor = factor

        def tensor(self, name: str) -> torch.Tensor | None:
            return None if "norm" in name else source[name] * self.factor

        def rounding(self, name: str) -> None:
            return None

    with WeightReader(tmp_path) as reader:
        tables = compare({"same": Made(1.0), "double": Made(2.0)}, reader, shape)
    names = [name for name in source if "norm" not in name]
    assert list(tables["same"]) == list(tables["double"]) == names
    assert {figures["error"] for figures in tables["same"].values()} == {0.0}
    assert all(f["error"] == pytest.approx(1.0) for f in tables["double"].values())


@pytest.mark.parametrize("apart", [True, False])
def test_a_tied_output_layer_written_apart_must_be_the_embedding(
    tmp_path: Path, apart: bool
) -> None:
    shape = replace(LLAMA, layers=1, tied=True)
    source = made_source(tmp_path, shape)

    class Written:
        def tensor(self, name: str) -> torch.Tensor | None:
            if name == LM_HEAD:
                return source[EMBEDDING] * 2 if apart else None
            return source[name]

        def rounding(self, name: str) -> None:
            return None

    with WeightReader(tmp_path) as reader:
        table = compare({"qnemo": Written()}, reader, shape)["qnemo"]
    wrong = {name: figures["error"] for name, figures in table.items() if figures["error"]}
    assert wrong == ({LM_HEAD: pytest.approx(1.0)} if apart else {})


QUANTIZED = ("fp8", "int8_sq", "nvfp4", "int4_awq", "w4a8_awq")


def matrix(seed: int, kind: str) -> torch.Tensor:
    """Weights as a random model has them, and as real models have them: with heavy tails, and with
    columns of outliers."""
    draw = torch.Generator().manual_seed(seed)
    weight = 0.05 * torch.randn(256, 256, generator=draw)
    if kind == "heavy tails":
        weight *= torch.rand(256, 256, generator=draw) ** -0.4
    if kind == "outliers":
        weight[:, ::37] *= 20
    return weight


def prescale_of(format: str, seed: int) -> torch.Tensor | None:
    draw = torch.Generator().manual_seed(seed)
    return 0.5 + torch.rand(256, generator=draw) if storage(format).prescaled else None


def written(format: str, weight: torch.Tensor, prescale: torch.Tensor | None) -> torch.Tensor:
    """As a file gives it: the input's scales are in bfloat16."""
    stored = None if prescale is None else prescale.bfloat16().float()
    found = rounded(storage(format), weight, prescale, weight.abs().max())
    return found if prescale is None or stored is None else found / prescale * stored


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("kind", ["random", "heavy tails", "outliers"])
@pytest.mark.parametrize("format", QUANTIZED)
def test_honest_rounding_has_no_excess_whatever_the_weights(
    format: str, kind: str, seed: int
) -> None:
    weight, prescale = matrix(seed, kind), prescale_of(format, seed)
    how = Rounding(storage(format), None if prescale is None else prescale.bfloat16().float())
    found = beyond_rounding(written(format, weight, prescale), weight, how)
    assert found["excess"] < 0.7 * most_excess(storage(format), found["rounding"])
    assert found["rounding"] > 0.002


DAMAGES = {
    "every scale a fifth too large": lambda w: w * 1.2,
    "every scale a tenth too small": lambda w: w * 0.9,
    "the scales of one row a tenth too large": lambda w: torch.cat([w[:1] * 1.1, w[1:]]),
    "two rows exchanged": lambda w: torch.cat([w[1:2], w[:1], w[2:]]),
    "two columns exchanged": lambda w: torch.cat([w[:, 1:2], w[:, :1], w[:, 2:]], dim=1),
    "transposed": lambda w: w.T.contiguous(),
    "the next block's columns": lambda w: w.roll(128, dims=1),
    "a row of zeros": lambda w: torch.cat([0 * w[:1], w[1:]]),
    "negated": lambda w: -w,
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("format", QUANTIZED)
def test_damage_is_beyond_rounding(format: str, damage: str) -> None:
    """One row of a format with a single scale has no scale of its own: it counts by its share."""
    for seed, kind in enumerate(("random", "heavy tails", "outliers")):
        weight, prescale = matrix(seed, kind), prescale_of(format, seed)
        ours = DAMAGES[damage](written(format, weight, prescale))
        how = Rounding(storage(format), prescale)
        found = beyond_rounding(ours, weight, how)
        single = storage(format).scale == "tensor" and damage.startswith("the scales of one row")
        assert single or found["excess"] > 1.1 * most_excess(storage(format), found["rounding"]), (
            kind,
            found,
        )
