from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from pipeline.adapters.dequantize import _dequantize, compare
from pipeline.adapters.hf import WeightReader


@given(
    st.lists(st.lists(st.integers(-8, 7), min_size=4, max_size=4), min_size=2, max_size=6).filter(
        lambda rows: len(rows) % 2 == 0
    )
)
def test_two_rows_of_four_bits_share_a_byte(rows: list[list[int]]) -> None:
    # The even row in the low half, the odd one in the high half, in two's complement.
    packed = torch.tensor(
        [
            [(low % 16) | (high % 16) << 4 for low, high in zip(even, odd, strict=True)]
            for even, odd in zip(rows[::2], rows[1::2], strict=True)
        ],
        dtype=torch.uint8,
    )
    scale = torch.arange(1, 2 * len(rows) + 1).float().reshape(len(rows), 2)  # two groups a row
    prescale = torch.tensor([1.0, 2.0, 3.0, 4.0])
    expected = torch.tensor(rows).float() * scale.repeat_interleave(2, dim=1) * prescale
    for stored in (packed, packed.view(torch.int8)):
        assert torch.equal(_dequantize(stored, scale, prescale), expected)


def test_a_scale_is_of_the_tensor_or_of_its_rows() -> None:
    stored = torch.tensor([[1, -2], [3, 4]], dtype=torch.int8)
    rows = _dequantize(stored, torch.tensor([10.0, 0.5]), None)
    assert rows.tolist() == [[10.0, -20.0], [1.5, 2.0]]
    for scale in (torch.tensor(2.0), torch.tensor([2.0])):
        assert _dequantize(stored, scale, None).tolist() == [[2.0, -4.0], [6.0, 8.0]]
    eighth = torch.tensor([[448.0, -0.015625]]).to(torch.float8_e4m3fn)
    assert _dequantize(eighth, torch.tensor([0.5]), None).tolist() == [[224.0, -0.0078125]]


def test_comparison_tells_direction_and_size_apart(tmp_path: Path) -> None:
    source = {"a": torch.tensor([3.0, 4.0]), "b": torch.zeros(2), "c": torch.tensor([1.0, 0.0])}
    save_file(source, tmp_path / "model.safetensors")
    ours = {"a": torch.tensor([6.0, 8.0]), "b": torch.zeros(2), "c": torch.tensor([0.0, 1.0])}
    with WeightReader(tmp_path) as reader:
        table = compare(iter(ours.items()), reader)
    assert table["a"] == {"cosine": pytest.approx(1.0), "error": pytest.approx(1.0)}
    assert table["b"] == {"cosine": 1.0, "error": 0.0}
    assert table["c"]["cosine"] == 0.0
