"""Why a profile (profiles.py) cannot run on a machine, and what would."""

from pipeline.config.engine import EngineConfig
from pipeline.core.hardware import Machine, installed_version
from pipeline.engines import memory
from pipeline.engines.memory import Fit, gib
from pipeline.engines.profile import Profile
from pipeline.engines.trtllm import build as trtllm
from pipeline.engines.vllm import arguments as vllm
from pipeline.optimization.formats import FORMATS

# The least compute capability of a runtime.
LEAST_CAPABILITY = {"trtllm": (8, 0), "vllm": (7, 5), "hf": (7, 0)}


def too_little(profile: Profile, found: Fit, engine: EngineConfig, slots: int) -> str:
    """By how much memory is short, and which setting fits.

    Args:
        slots: engine.max_batch_size at most, with a step of so many; 0 if not even 1 fits.
    """
    where = "a GPU gives it" if profile.gpu else "this machine has"
    text = (
        f"it takes {gib(found.needed)} and {where} {gib(found.capacity)}: "
        f"{gib(found.lacking)} too little; "
    )
    if profile.runtime not in memory.PAGED and slots:
        return text + f"engine.max_batch_size={slots} fits"
    if found.longest > 1:
        shorter = f"engine.max_seq_len={found.longest}"
        if engine.max_input_len >= found.longest:
            shorter += f" with engine.max_input_len={found.longest - 1}"
        return text + f"{shorter} fits"
    if slots:
        return text + f"engine.max_batch_size={slots} fits"
    return text + f"weights and a step alone do not fit: {_smaller(profile)}"


def _smaller(profile: Profile) -> str:
    """What takes less memory than a profile's weights and a step."""
    if not profile.gpu:
        return "choose engine=onnxruntime engine.precision=int4, or a smaller model"
    if profile.form == "qnemo":
        return (
            "choose a smaller format (quantize=fp8, quantize=int4_awq) or more GPUs "
            "(export.tensor_parallel)"
        )
    if profile.runtime == "hf":
        return "choose engine=vllm, which spreads a model over several GPUs, or a smaller model"
    return (
        "choose a smaller format (quantize=fp8) or more GPUs "
        "(engine.arguments.tensor_parallel_size)"
    )


def not_loaded(profile: Profile) -> str | None:
    """Why a runtime does not take the format; None if it does."""
    if profile.runtime == "vllm":
        return vllm.not_loaded(profile.precision)
    if profile.runtime == "trtllm" and profile.form != "qnemo":
        return trtllm.not_loaded(profile.precision)
    return None


def missing(profile: Profile) -> str | None:
    """Why a runtime is not here; None if it is."""
    if profile.runtime == "vllm":
        return vllm.missing()
    if profile.runtime == "trtllm":
        return trtllm.missing() if profile.form == "qnemo" else trtllm.missing_llm()
    package = {"hf": "transformers", "onnxruntime": "onnxruntime-genai"}[profile.runtime]
    if not installed_version(package):
        return f"{package} is not installed"
    if profile.gpu and not torch_has_cuda():
        return "PyTorch is installed without CUDA"
    return None


def torch_has_cuda() -> bool:
    return not (installed_version("torch") or "+cpu").endswith("+cpu")


def lacks_gpu(profile: Profile, machine: Machine) -> str | None:
    if not machine.gpus:
        return "this machine has no NVIDIA GPU"
    if len(machine.gpus) < profile.tensor_parallel:
        return f"it is for {profile.tensor_parallel} GPUs, and here are {len(machine.gpus)}"
    here = min(tuple(map(int, gpu.compute_capability.split("."))) for gpu in machine.gpus)
    format = FORMATS.get(profile.precision)
    needs = {
        profile.runtime: LEAST_CAPABILITY.get(profile.runtime),
        profile.precision: format and format.computes_on,
    }
    for what, least in needs.items():
        if least and here < least:
            return (
                f"{what} needs compute capability {least[0]}.{least[1]}, and this GPU has "
                f"{here[0]}.{here[1]}"
            )
    return None
