"""Angles of the tokens of a pack."""

import torch

from pipeline.training.nemo.patches.packed_rope import angles_of


def test_angles_begin_anew_with_each_row() -> None:
    freqs = torch.arange(5.0).view(5, 1, 1, 1).expand(5, 1, 1, 4)
    boundaries = torch.tensor([0, 3, 8, 9], dtype=torch.int32)
    found = angles_of(freqs, boundaries, tokens=11)
    assert found.shape == (11, 1, 1, 4)
    assert found[:9, 0, 0, 0].tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 0]
