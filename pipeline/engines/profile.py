"""One way to serve a model, and its name."""

from dataclasses import dataclass

from pipeline.core.errors import MissingRuntime, PipelineError
from pipeline.engines.memory import Fit
from pipeline.optimization.formats import FORMATS

# On a CPU int8 is weight-only and comes before float32, because stage=build takes int8 only if it
# gives the same answers as float32.
PLAIN_PRECISIONS = ("fp16", "bf16", "fp32")
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
        known = gpu_precisions() if self.gpu else list(CPU_PRECISIONS)
        return known.index(self.precision) if self.precision in known else len(known)


def gpu_precisions() -> list[str]:
    """Best first: formats of eight bits, those that are not quantized, formats of fewer bits."""
    bits = {f.name: f.storage.bits for f in FORMATS.values() if f.storage}
    whole = [name for name, count in bits.items() if count >= 8]
    return [*whole, *PLAIN_PRECISIONS, *(name for name in bits if name not in whole)]


def profile_name(runtime: str, precision: str, tensor_parallel: int, *, lora: bool) -> str:
    return f"{runtime}-{precision}-tp{tensor_parallel}-pp1" + LORA * lora
