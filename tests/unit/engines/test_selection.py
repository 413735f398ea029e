"""Profiles: what can run where and why not, in NIM's order, with measured ones first."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.config.engine import EngineConfig
from pipeline.core import hardware
from pipeline.core.errors import ConfigError, MissingRuntime, ResourceError
from pipeline.core.hardware import GIB, Gpu, Machine
from pipeline.engines.batching.prompt_lookup import INDEX_BYTES
from pipeline.engines.checkpoint import Checkpoint
from pipeline.engines.memory import Decoder
from pipeline.engines.profile import Profile
from pipeline.engines.selection import choose, explain, find_profiles
from pipeline.engines.trtllm import build as trtllm
from pipeline.engines.vllm import arguments as vllm
from pipeline.orchestration.compose import compose

LLAMA_8B = Decoder(32, 4096, 14336, 32, 8, 128, 128256, 8192, tied=False)
CPU = Machine("Linux", "3.12", "a processor", 16, 64 * GIB, None, ())
H200 = Gpu("NVIDIA H200", 140 * GIB, "9.0", mig=False)
A100 = Gpu("NVIDIA A100", 40 * GIB, "8.0", mig=False)
SLICE = Gpu("NVIDIA H200 MIG 1g.18gb", 16 * GIB, "9.0", mig=True)
GB10 = Gpu("NVIDIA GB10", 0, "12.1", mig=False)
B200 = Gpu("NVIDIA B200", 180 * GIB, "10.0", mig=False)
FP8 = (
    Checkpoint("hf", "bf16"),
    Checkpoint("qnemo", "fp8"),
    Checkpoint("unified", "fp8"),
)
EVERYTHING = {
    "torch": "2.13.0+cu130",
    "transformers": "4.57.6",
    "onnxruntime-genai": "0.12.2",
    "vllm": "0.24.0",
    "tensorrt_llm": "1.2.1",
}


def machine(*gpus: Gpu) -> Machine:
    return replace(CPU, gpus=gpus)


@pytest.fixture
def engine() -> EngineConfig:
    tree = {**compose([])["engine"], "max_seq_len": 8192, "max_input_len": 4096}
    return EngineConfig.model_validate(tree)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Any:
    def install(*names: str, **versions: str) -> None:
        here = {name: EVERYTHING[name] for name in names} | versions
        monkeypatch.setattr(hardware, "installed_version", here.get)
        monkeypatch.setattr(vllm, "version", lambda: here.get("vllm"))
        monkeypatch.setattr(trtllm, "llm_version", lambda: here.get("tensorrt_llm"))
        monkeypatch.setattr(trtllm, "version", lambda: here.get("tensorrt_llm"))

    install(*EVERYTHING)
    return install


def found(
    engine: EngineConfig,
    where: Machine,
    checkpoints: Sequence[Checkpoint] = FP8,
    measured: dict[str, float] | None = None,
) -> list[Profile]:
    return find_profiles(
        LLAMA_8B, checkpoints, engine, where, lora_rank=16, measured=measured or {}
    )


def test_prompt_lookup_is_for_our_engines_on_a_cpu(engine: EngineConfig, installed: Any) -> None:
    lookup = engine.but(speculative="prompt_lookup")
    plain, with_index = (found(how, CPU) for how in (engine, lookup))
    assert choose(with_index, lookup).name == "onnxruntime-int8-tp1-pp1"
    needs = [fit.needed for p in (plain, with_index) if (fit := choose(p, lookup).fit)]
    assert needs[1] - needs[0] == INDEX_BYTES * 16 * 8192
    for name, profile in (("hf", None), ("vllm", None), ("auto", "hf-bf16-tp1-pp1")):
        asked = lookup.but(name=name, profile=profile)
        with pytest.raises(ConfigError, match=r"^engine\.speculative=.* does not take it"):
            choose(found(asked, machine(H200)), asked)
    # auto leaves out what cannot take it.
    assert choose(found(lookup, machine(H200)), lookup).runtime == "onnxruntime"


def running(profiles: Sequence[Profile]) -> list[str]:
    return [profile.name for profile in profiles if profile.reason is None]


def reason(profiles: Sequence[Profile], name: str) -> str:
    (profile,) = [profile for profile in profiles if profile.name == name]
    return profile.reason or ""


def test_nims_order_on_two_gpus(installed: Any, engine: EngineConfig) -> None:
    names = running(found(engine, machine(H200, H200)))
    assert [name for name in names if "lora" not in name] == [
        "trtllm-fp8-tp2-pp1",
        "trtllm-fp8-tp1-pp1",
        "trtllm-bf16-tp2-pp1",
        "trtllm-bf16-tp1-pp1",
        "vllm-fp8-tp2-pp1",
        "vllm-fp8-tp1-pp1",
        "vllm-bf16-tp2-pp1",
        "vllm-bf16-tp1-pp1",
        "hf-bf16-tp1-pp1",
        "onnxruntime-int8-tp1-pp1",
        "onnxruntime-fp32-tp1-pp1",
        "onnxruntime-int4-tp1-pp1",
    ]
    assert len(set(names)) == len(names)


def test_measured_profiles_come_first_on_their_device(installed: Any, engine: EngineConfig) -> None:
    measured = {
        "vllm-fp8-tp1-pp1": 900.0,
        "hf-bf16-tp1-pp1": 200.0,
        "onnxruntime-int8-tp1-pp1": 1e6,
    }
    profiles = found(engine, machine(H200), measured=measured)
    assert running(profiles)[:3] == ["vllm-fp8-tp1-pp1", "hf-bf16-tp1-pp1", "trtllm-fp8-tp1-pp1"]
    chosen = choose(profiles, engine)
    assert chosen.name == "vllm-fp8-tp1-pp1"
    assert "the fastest measured here, 900 tokens/s" in explain(profiles, chosen, engine)[-1]


def test_without_a_gpu_the_processor_serves(installed: Any, engine: EngineConfig) -> None:
    profiles = found(engine, CPU)
    assert choose(profiles, engine.model_copy(update={"max_batch_size": 1})).name == (
        "onnxruntime-int8-tp1-pp1"
    )
    assert reason(profiles, "vllm-fp8-tp1-pp1") == "this machine has no NVIDIA GPU"
    lines = explain(profiles, choose(profiles, engine), engine)
    assert "not trtllm-fp8-tp1-pp1: this machine has no NVIDIA GPU" in lines
    assert "the first in NVIDIA NIM's order" in lines[-1]


@pytest.mark.parametrize(
    ("names", "profile", "words"),
    [
        (("torch", "transformers"), "vllm-bf16-tp1-pp1", "vLLM is not installed"),
        (("vllm",), "trtllm-fp8-tp1-pp1", "TensorRT-LLM is not installed"),
        (("vllm",), "hf-bf16-tp1-pp1", "transformers is not installed"),
        (("vllm",), "onnxruntime-int8-tp1-pp1", "onnxruntime-genai is not installed"),
    ],
)
def test_a_runtime_that_is_absent(
    installed: Any, engine: EngineConfig, names: tuple[str, ...], profile: str, words: str
) -> None:
    installed(*names)
    assert reason(found(engine, machine(H200)), profile) == words


def test_pytorch_takes_the_gpu_where_it_can(installed: Any, engine: EngineConfig) -> None:
    small = engine.model_copy(update={"max_batch_size": 1, "name": "hf"})
    assert choose(found(small, machine(H200)), small).gpu
    assert "hf-fp32-tp1-pp1" not in running(found(small, machine(H200)))
    installed("transformers", torch="2.13.0+cpu")
    profiles = found(small, machine(H200))
    assert reason(profiles, "hf-bf16-tp1-pp1") == "PyTorch is installed without CUDA"
    assert not choose(profiles, small).gpu
    names = [p.name for p in found(small, CPU, (Checkpoint("hf", "fp32"),)) if p.runtime == "hf"]
    assert names == ["hf-fp32-tp1-pp1", "hf-fp32-tp1-pp1-feat_lora"]


def test_formats_that_a_gpu_or_a_runtime_does_not_know(
    installed: Any, engine: EngineConfig
) -> None:
    old = found(engine, machine(A100))
    assert "fp8 needs compute capability 8.9, and this GPU has 8.0" in (
        reason(old, "vllm-fp8-tp1-pp1")
    )
    assert reason(old, "vllm-bf16-tp1-pp1") == ""
    four_bits = (Checkpoint("qnemo", "nvfp4"), Checkpoint("unified", "nvfp4"))
    assert "needs compute capability 10.0" in (
        reason(found(engine, machine(H200), four_bits), "vllm-nvfp4-tp1-pp1")
    )
    assert "vllm-nvfp4-tp1-pp1" in running(found(engine, machine(B200), four_bits))
    awq = (Checkpoint("qnemo", "int4_awq"), Checkpoint("unified", "int4_awq"))
    profiles = found(engine, machine(H200), awq)
    assert reason(profiles, "vllm-int4_awq-tp1-pp1").startswith("vLLM does not load int4_awq: ")
    named = engine.model_copy(update={"profile": "vllm-int4_awq-tp1-pp1"})
    with pytest.raises(ConfigError, match="choose quantize=fp8 or quantize=none"):
        choose(profiles, named)
    assert reason(profiles, "trtllm-int4_awq-tp1-pp1") == ""


def test_a_newer_tensorrt_llm_loads_the_hf_folder(installed: Any, engine: EngineConfig) -> None:
    def form(version: str) -> str:
        installed("vllm", tensorrt_llm=version)
        profiles = found(engine, machine(H200))
        return next(p.form for p in profiles if p.name == "trtllm-fp8-tp1-pp1")

    assert form("1.2.1") == "qnemo"
    assert form("1.3.0") == "unified"
    awq = (Checkpoint("qnemo", "int4_awq"), Checkpoint("unified", "int4_awq"))
    assert reason(found(engine, machine(H200), awq), "trtllm-int4_awq-tp1-pp1") == (
        "TensorRT-LLM 1.3.0 is installed, and only 1.0 to 1.2 build engines"
    )


def test_checkpoints_for_more_gpus_than_there_are(installed: Any, engine: EngineConfig) -> None:
    wide = (Checkpoint("qnemo", "fp8", tensor_parallel=4),)
    assert reason(found(engine, machine(H200), wide), "trtllm-fp8-tp4-pp1") == (
        "it needs 4 GPUs, and this machine has 1"
    )
    assert running(found(engine, machine(*[H200] * 4), wide)) == ["trtllm-fp8-tp4-pp1"]


def test_as_many_gpus_as_are_asked_for(installed: Any, engine: EngineConfig) -> None:
    asked = engine.model_copy(update={"name": "vllm", "arguments": {"tensor_parallel_size": 2}})
    four = machine(*[H200] * 4)
    assert choose(found(asked, four), asked).name == "vllm-fp8-tp2-pp1"
    assert choose(found(engine, four), asked).tensor_parallel == 4
    with pytest.raises(MissingRuntime, match="it needs 2 GPUs, and this machine has 1"):
        choose(found(asked, machine(H200)), asked)


@pytest.mark.parametrize("name", ["tensor_parallel_size", "gpu_memory_utilization"])
@pytest.mark.parametrize("value", ["two", 0, True, None])
def test_arguments_that_count_here_are_numbers(engine: EngineConfig, name: str, value: Any) -> None:
    with pytest.raises(ValidationError, match=name):
        EngineConfig(**{**engine.model_dump(), "arguments": {name: value}})


def test_lora_is_a_hard_filter_where_it_is_asked_for(installed: Any, engine: EngineConfig) -> None:
    asked = engine.model_copy(update={"lora_rank": 16})
    profiles = found(asked, machine(H200))
    with_lora = {name for name in running(profiles) if name.endswith("-feat_lora")}
    assert with_lora == {
        "trtllm-bf16-tp1-pp1-feat_lora",
        "vllm-fp8-tp1-pp1-feat_lora",
        "vllm-bf16-tp1-pp1-feat_lora",
        "hf-bf16-tp1-pp1-feat_lora",
    }
    assert choose(profiles, asked).name == "trtllm-bf16-tp1-pp1-feat_lora"
    assert choose(profiles, engine).lora_rank == 0
    with pytest.raises(ConfigError, match=r"engine=onnxruntime has no profile .* LoRA adapters"):
        choose(profiles, asked.model_copy(update={"name": "onnxruntime"}))


def test_a_slice_of_a_gpu_counts_for_what_it_is(installed: Any, engine: EngineConfig) -> None:
    profiles = found(engine, machine(SLICE))
    # 8 B parameters in bfloat16 are 15 GiB: they do not fit into 0.9 of 16 GiB beside the rest.
    assert "too little" in reason(profiles, "vllm-bf16-tp1-pp1")
    assert choose(profiles, engine).name == "trtllm-fp8-tp1-pp1"
    (profile,) = [p for p in profiles if p.name == "vllm-fp8-tp1-pp1"]
    assert profile.fit
    assert profile.fit.capacity == 0.9 * 16 * GIB


def test_a_gpu_without_memory_of_its_own_has_the_machines(
    installed: Any, engine: EngineConfig
) -> None:
    where = replace(machine(GB10), memory_bytes=128 * GIB)
    profiles = found(engine, where)
    chosen = choose(profiles, engine)
    assert chosen.name == "trtllm-fp8-tp1-pp1"
    assert chosen.fit
    assert chosen.fit.capacity == 0.9 * 128 * GIB
    little = found(engine, replace(where, memory_bytes=8 * GIB))
    assert "a GPU has 7.2 GiB for it" in reason(little, "vllm-bf16-tp1-pp1")


def test_a_machine_that_does_not_say_its_memory_has_enough(
    installed: Any, engine: EngineConfig
) -> None:
    for where in (replace(machine(GB10), memory_bytes=0), replace(CPU, memory_bytes=0)):
        profiles = found(engine, where)
        assert not any(profile.low_memory for profile in profiles)
        assert choose(profiles, engine).fit is None


@pytest.mark.parametrize(
    ("profile", "remedy"),
    [
        ("trtllm-fp8-tp1-pp1", r"int4_awq\) or more GPUs \(export\.tensor_parallel\)"),
        ("vllm-fp8-tp1-pp1", r"more GPUs \(engine\.arguments\.tensor_parallel_size\)"),
        ("hf-bf16-tp1-pp1", "engine=vllm, which spreads"),
        ("onnxruntime-fp32-tp1-pp1", r"engine=onnxruntime engine\.precision=int4"),
    ],
)
def test_where_nothing_fits_the_remedy_is_one_of_that_profile(
    installed: Any, engine: EngineConfig, profile: str, remedy: str
) -> None:
    tiny = replace(machine(replace(H200, memory_bytes=2 * GIB)), memory_bytes=2 * GIB)
    named = engine.model_copy(update={"profile": profile})
    with pytest.raises(ResourceError, match=f"one step alone do not fit: .*{remedy}"):
        choose(found(engine, tiny), named)


def test_too_little_memory_names_the_setting_that_fits(
    installed: Any, engine: EngineConfig
) -> None:
    card = Gpu("NVIDIA L40S", 19 * GIB, "8.9", mig=False)
    bf16 = (Checkpoint("hf", "bf16"),)
    more = {"gpu_memory_utilization": 0.95}
    asked = engine.model_copy(update={"name": "vllm", "arguments": more, "max_seq_len": 8192})
    profiles = found(asked, machine(card), bf16)
    with pytest.raises(ResourceError, match=r"GiB too little; engine\.max_seq_len=(\d+)") as error:
        choose(profiles, asked)
    length = int(str(error.value).split("engine.max_seq_len=")[1].split()[0])
    fits = asked.model_copy(update={"max_seq_len": length, "max_input_len": 16})
    assert choose(found(fits, machine(card), bf16), fits).runtime == "vllm"
    longer = fits.model_copy(update={"max_seq_len": length + 1})
    with pytest.raises(ResourceError):
        choose(found(longer, machine(card), bf16), longer)

    rows = engine.model_copy(update={"name": "onnxruntime", "precision": "int8"})
    profiles = found(rows, replace(CPU, memory_bytes=16 * GIB), bf16)
    with pytest.raises(ResourceError, match=r"engine\.max_batch_size=(\d+) fits") as error:
        choose(profiles, rows)
    count = int(str(error.value).split("engine.max_batch_size=")[1].split()[0])
    fewer = rows.model_copy(update={"max_batch_size": count})
    assert choose(found(fewer, replace(CPU, memory_bytes=16 * GIB), bf16), fewer)

    tiny = machine(Gpu("T4", 4 * GIB, "9.0", mig=False))
    with pytest.raises(ResourceError, match="the weights and one step alone do not fit: choose"):
        choose(found(asked, tiny, bf16), asked)


@pytest.mark.parametrize("name", ["onnxruntime", "vllm"])
def test_a_batch_whose_step_alone_does_not_fit_is_to_be_smaller(
    installed: Any, engine: EngineConfig, name: str
) -> None:
    """The largest that fits is named: it does, and one more does not."""
    asked = engine.model_copy(
        update={"name": name, "max_batch_size": 10_000_000, "max_seq_len": 64, "max_input_len": 32}
    )
    where = machine(H200)
    if name == "onnxruntime":
        asked = asked.model_copy(update={"precision": "int8"})
        where = replace(CPU, memory_bytes=64 * GIB)
    with pytest.raises(
        ResourceError, match=r"too little; engine\.max_batch_size=\d+ fits"
    ) as error:
        choose(found(asked, where), asked)
    count = int(str(error.value).split("; engine.max_batch_size=")[1].split()[0])
    fits = asked.model_copy(update={"max_batch_size": count})
    assert choose(found(fits, where), fits).runtime == name
    more = asked.model_copy(update={"max_batch_size": count + 1})
    with pytest.raises(ResourceError):
        choose(found(more, where), more)


def test_a_profile_that_is_named_wins_or_says_why_it_cannot(
    installed: Any, engine: EngineConfig
) -> None:
    profiles = found(engine, machine(H200))
    named = engine.model_copy(update={"profile": "hf-bf16-tp1-pp1"})
    chosen = choose(profiles, named)
    assert chosen.name == "hf-bf16-tp1-pp1"
    assert explain(profiles, chosen, named)[-1].endswith("engine.profile names it")
    with pytest.raises(ConfigError, match="does not exist for this model: choose from trtllm-fp8"):
        choose(profiles, engine.model_copy(update={"profile": "vllm-int3-tp1-pp1"}))
    with pytest.raises(ConfigError, match=r"feat_lora also needs engine\.lora_rank="):
        choose(profiles, engine.model_copy(update={"profile": "vllm-bf16-tp1-pp1-feat_lora"}))
    installed("vllm")
    with pytest.raises(MissingRuntime, match="hf-bf16-tp1-pp1 cannot run here: transformers is"):
        choose(found(engine, machine(H200)), named)


def test_a_fake_quantized_folder_is_for_pytorch_alone(installed: Any, engine: EngineConfig) -> None:
    small = engine.model_copy(update={"max_batch_size": 1})
    profiles = found(small, CPU, (Checkpoint("modelopt", "bf16"),))
    assert running(profiles) == ["hf-fp32-tp1-pp1"]
    assert not any(profile.lora_rank for profile in profiles)
