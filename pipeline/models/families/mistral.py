"""Mistral: Llama's layer, with a window that must not cut anything off."""

from pipeline.models.families.llama import LAYER
from pipeline.models.families.record import Family, NemoModel, TensorRTLLM, Window

_NEMO = "nemo.collections.llm.gpt.model.mistral"

MISTRAL = Family(
    name="mistral",
    title="Mistral",
    architectures=("MistralForCausalLM",),
    model_type="mistral",
    layer=LAYER,
    nemo=NemoModel(
        model=f"{_NEMO}:MistralModel",
        config=f"{_NEMO}:MistralConfig7B",
        # Full attention: a smaller window was refused when the folder was checked.
        fields={"window_size": None, "cp_comm_type": None},
    ),
    trtllm=TensorRTLLM(decoder="llama", architecture="MistralForCausalLM"),
    window=Window(default=4096),
)
