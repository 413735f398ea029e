"""Halves of a tensor that were read to their place are not copied to be one again."""

import torch

from pipeline.training.nemo.patches.checkpoint_load import joined_view


def test_halves_that_lie_together_are_one_without_a_copy() -> None:
    whole = torch.arange(24.0).reshape(6, 4)
    joined = joined_view(whole.chunk(2))
    assert joined is not None
    assert joined.data_ptr() == whole.data_ptr()
    assert torch.equal(joined, whole)
    inside = torch.arange(40.0).reshape(10, 4)[2:8]  # within a larger memory
    joined = joined_view(inside.chunk(2))
    assert joined is not None
    assert torch.equal(joined, inside)


def test_halves_that_lie_elsewhere_are_not_one() -> None:
    whole = torch.arange(24.0).reshape(6, 4)
    first, second = whole.chunk(2)
    assert joined_view([second, first]) is None
    assert joined_view([first, second.clone()]) is None
    assert joined_view([whole[:2], whole[3:]]) is None
    assert joined_view(torch.arange(24.0).reshape(4, 6).T.chunk(2)) is None
    assert joined_view([first, second.double()]) is None
