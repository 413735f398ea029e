"""Collects ModelOpt's largest values without waiting for the GPU, and once for each weight.

ModelOpt 0.37 reduces every weight again with each batch, though none changes, and checks at once
whether each value is finite. The host then waits for the GPU three times for each layer's weight
and input (quantization/calib/max.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pipeline.core.errors import PipelineError
from pipeline.core.monkeypatch import Patch, replaced

NOT_FINITE = (
    "the model's outputs are not finite: activations overflow in this format; calibrate on more "
    "rows (quantize.calibration.rows), in float32 (a CPU does), or choose int8_sq"
)

LARGEST_VALUES = Patch(
    owner="modelopt.torch.quantization.calib:MaxCalibrator",
    names=("collect",),
    distribution="nvidia-modelopt",
    version="0.37.0",
    reason=(
        "It waits for the GPU three times for each layer's weight and input, and searches the "
        "weights again with every batch."
    ),
    digest="2e2df4988c332d41",
    source=("modelopt.torch.quantization.calib.max:MaxCalibrator.collect",),
    required="finetune.patches is about training; the values are the same to the bit",
)


@contextmanager
def quick_maxima() -> Iterator[None]:
    """MaxCalibrator collects in this way within it: one pass over the batches, no gradients.

    Raises:
        PipelineError: on exit, if a value is infinite or not a number.
    """
    import torch
    from modelopt.torch.quantization import utils

    largest: dict[Any, torch.Tensor] = {}

    def collect(self: Any, x: torch.Tensor) -> None:
        if self in largest and isinstance(x, torch.nn.Parameter):
            return
        axis = utils.convert_quantization_axis_to_reduce_axis(x, self._axis)
        found = utils.reduce_amax(x, axis=axis)
        if self._calib_amax is not None:
            found = torch.maximum(self._calib_amax, found)  # torch.maximum keeps NaN
        self._calib_amax = largest[self] = found

    with replaced(LARGEST_VALUES.by(collect=collect)):
        yield
    finite = [value.isfinite().all() for value in largest.values()]
    if finite and not torch.stack(finite).all():
        raise PipelineError(NOT_FINITE)
