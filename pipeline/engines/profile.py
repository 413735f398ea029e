"""One way to serve a model, and its place among the others."""

from dataclasses import dataclass

from pipeline.core.errors import MissingRuntime, PipelineError
from pipeline.engines.memory import Fit
from pipeline.optimization.formats import FORMATS

# NIM's order, best first. Its runtimes are the first two; precisions of the same kind stand
# together. On a CPU int8 is weight-only and comes before float32, because stage=build takes it only
# where it gives the answers of float32.
RUNTIMES = ("trtllm", "vllm", "hf")
CPU_RUNTIMES = ("onnxruntime", "hf")
PLAIN_PRECISIONS = ("fp16", "bf16", "fp32")
CPU_PRECISIONS = ("int8", "fp32", "int4")
LORA = "-feat_lora"


@dataclass(frozen=True)
class Profile:
    """A way to serve. reason: why it cannot run here; low_memory: that it is only for memory.

    tokens_per_second: measured on this machine by stage=benchmark, None if it was not.
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
    def order(self) -> tuple[float, ...]:
        """Best first: GPU, measured (fastest first), runtime, precision, most GPUs."""
        runtimes = RUNTIMES if self.gpu else CPU_RUNTIMES
        precisions = gpu_precisions() if self.gpu else CPU_PRECISIONS
        return (
            not self.gpu,
            -(self.tokens_per_second or 0),
            runtimes.index(self.runtime),
            precisions.index(self.precision),
            -self.tensor_parallel,
        )


def gpu_precisions() -> list[str]:
    """Best first: formats of eight bits, those that are not quantized, formats of fewer bits."""
    bits = {f.name: f.storage.bits for f in FORMATS.values() if f.storage}
    whole = [name for name, count in bits.items() if count >= 8]
    return [*whole, *PLAIN_PRECISIONS, *(name for name in bits if name not in whole)]


def profile_name(runtime: str, precision: str, tensor_parallel: int, *, lora: bool) -> str:
    return f"{runtime}-{precision}-tp{tensor_parallel}-pp1" + LORA * lora
