"""Simulates integer formats in torch operations, where ModelOpt would compile a CUDA kernel."""

import torch

_LEAST_AMAX = 2.0**-24  # ModelOpt's: up to it all is zero


def round_to_int(
    inputs: torch.Tensor,
    amax: torch.Tensor,
    num_bits: int = 8,
    unsigned: bool = False,
    narrow_range: bool = True,
) -> torch.Tensor:
    """`inputs` rounded to integers of `num_bits` and back, in their own type.

    amax: the value that is scaled to the largest integer: one, or with as many dimensions as the
        inputs and one for each place of an axis. narrow_range: the least integer is the largest
        one's negative.
    """
    bound = 2 ** (num_bits - 1 + unsigned) - 1
    largest = amax.float()
    # A number divided by a tensor would be the number times the tensor's reciprocal.
    scale = torch.full_like(largest, bound) / largest
    least = 0 if unsigned else -bound - (not narrow_range)
    rounded = (inputs.float() * scale).round_().clamp_(least, bound)
    rounded /= scale
    return torch.where(largest <= _LEAST_AMAX, 0.0, rounded).to(inputs.dtype)
