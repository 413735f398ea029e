"""ModelOpt's largest values, collected without waiting for a GPU, and of each weight once.

ModelOpt 0.37 looks for them in the weights again with every batch, though none changes, and asks of
each value as it comes whether it is finite: the host then waits for the GPU, three times for each
layer's weight and input (quantization/calib/max.py).
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
    library="nvidia-modelopt",
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
    """Within it MaxCalibrator collects so. For one pass over the batches, without gradients.

    Raises:
        PipelineError: a value is infinite or not a number, on leaving.
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
            found = torch.maximum(self._calib_amax, found)  # which keeps what is not a number
        self._calib_amax = largest[self] = found

    with replaced(LARGEST_VALUES.by(collect=collect)):
        yield
    finite = [value.isfinite().all() for value in largest.values()]
    if finite and not torch.stack(finite).all():
        raise PipelineError(NOT_FINITE)
