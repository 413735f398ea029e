"""Simulates FP8 in torch operations, with the same results on a CPU and on a GPU."""

import torch

LARGEST = 448.0  # of E4M3
_LEAST_AMAX = 1e-30  # for inputs that are all zero


def round_to_fp8(x: torch.Tensor, amax: torch.Tensor | None = None) -> torch.Tensor:
    """`x` rounded to FP8 E4M3 (arXiv:2209.05433) and back, in its own type.

    amax: the value that is scaled to the format's largest one; larger ones saturate, as on NVIDIA's
        GPUs (CUDA Math API, __NV_SATFINITE). None scales nothing.
    """
    fp8 = torch.float8_e4m3fn
    if amax is None:
        return x.clamp(-LARGEST, LARGEST).to(fp8).to(x.dtype)
    scale = LARGEST / amax.float().clamp(min=_LEAST_AMAX)
    scaled = (x.float() * scale).clamp_(-LARGEST, LARGEST).to(fp8)
    return (scaled.float() * (1 / scale)).to(x.dtype)
