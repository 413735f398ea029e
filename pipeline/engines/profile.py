"""One way to serve a model, and its name."""

from dataclasses import dataclass

from pipeline.core.errors import MissingRuntime, PipelineError
from pipeline.engines.memory import Fit

# Of the profiles of one engine, best first, as NVIDIA NIM sorts them; precisions of the same kind
# stand together. On a CPU int8 is weight-only and comes before float32, because stage=build takes
# int8 only where it gives the answers of float32.
PRECISIONS = ("fp8", "int8_sq", "fp16", "bf16", "fp32", "nvfp4", "int4_awq", "w4a8_awq")
CPU_PRECISIONS = ("int8", "fp32", "int4")
LORA = "-feat_lora"


@dataclass(frozen=True)
class Profile:
    """A way to serve. reason: why it cannot run here. low_memory: memory is the only reason.

    tokens_per_second: measured on this machine by stage=benchmark; None if not measured.
    """

    runtime: str
    precision: str
    tensor_parallel: int
    lora_rank: int
    gpu: bool
    form: str
    fit: Fit | None = None
    reason: str | None = None
    low_memory: bool = False
    error: type[PipelineError] = MissingRuntime
    tokens_per_second: float | None = None

    @property
    def name(self) -> str:
        return profile_name(
            self.runtime, self.precision, self.tensor_parallel, lora=self.lora_rank > 0
        )

    @property
    def precision_place(self) -> int:
        """Place among the precisions of its device; the unknown ones come last."""
        known = PRECISIONS if self.gpu else CPU_PRECISIONS
        return known.index(self.precision) if self.precision in known else len(known)


def profile_name(runtime: str, precision: str, tensor_parallel: int, *, lora: bool) -> str:
    return f"{runtime}-{precision}-tp{tensor_parallel}-pp1" + LORA * lora
