"""Why a profile (selection.py) cannot run on a machine, and which setting would help."""

from pipeline.config.engine import EngineConfig
from pipeline.core.hardware import Machine
from pipeline.engines.memory import Fit, gib
from pipeline.engines.profile import Profile
from pipeline.engines.registry import ENGINES
from pipeline.optimization.formats import FORMATS


def too_little(profile: Profile, found: Fit, engine: EngineConfig, slots: int) -> str:
    """How much memory is missing, and which setting fits.

    Args:
        slots: the largest engine.max_batch_size that fits; 0 if not even 1 fits.
    """
    size = gib(found.capacity)
    here = f"a GPU has {size} for it" if profile.gpu else f"this machine has {size}"
    text = f"it needs {gib(found.needed)}, and {here}: {gib(found.lacking)} too little; "
    if slots and not ENGINES[profile.runtime].memory.paged:
        return text + f"engine.max_batch_size={slots} fits"
    if found.longest > 1:
        shorter = f"engine.max_seq_len={found.longest}"
        if engine.max_input_len >= found.longest:
            shorter += f" with engine.max_input_len={found.longest - 1}"
        return text + f"{shorter} fits"
    if slots:
        return text + f"engine.max_batch_size={slots} fits"
    return text + f"the weights and one step alone do not fit: {_smaller(profile)}"


def _smaller(profile: Profile) -> str:
    """What needs less memory than the weights and one step of a profile."""
    if not profile.gpu:
        return "choose engine=onnxruntime engine.precision=int4, or a smaller model"
    if profile.form == "qnemo":
        return (
            "choose a smaller format (quantize=fp8, quantize=int4_awq) or more GPUs "
            "(export.tensor_parallel)"
        )
    if not ENGINES[profile.runtime].spreads:
        return "choose engine=vllm, which spreads a model over several GPUs, or a smaller model"
    return (
        "choose a smaller format (quantize=fp8) or more GPUs "
        "(engine.arguments.tensor_parallel_size)"
    )


def lacks_gpu(profile: Profile, machine: Machine) -> str | None:
    if not machine.gpus:
        return "this machine has no NVIDIA GPU"
    if len(machine.gpus) < profile.tensor_parallel:
        return f"it needs {profile.tensor_parallel} GPUs, and this machine has {len(machine.gpus)}"
    here = min(tuple(map(int, gpu.compute_capability.split("."))) for gpu in machine.gpus)
    format = FORMATS.get(profile.precision)
    least_of = {
        profile.runtime: ENGINES[profile.runtime].least_capability,
        profile.precision: format and format.computes_on,
    }
    for what, least in least_of.items():
        if least and here < least:
            return (
                f"{what} needs compute capability {least[0]}.{least[1]}, and this GPU has "
                f"{here[0]}.{here[1]}"
            )
    return None
