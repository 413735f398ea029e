"""Mistral: Llama's layer, with a sliding window in every layer."""

from pipeline.models.families.llama import LAYER
from pipeline.models.families.record import ConfigKeys, Family, NemoModel, TensorRTLLM, Window

_NEMO = "nemo.collections.llm.gpt.model.mistral"

MISTRAL = Family(
    name="mistral",
    title="Mistral",
    architectures=("MistralForCausalLM",),
    model_type="mistral",
    layer=LAYER,
    keys=ConfigKeys(attention_bias=None),
    nemo=NemoModel(
        model=f"{_NEMO}:MistralModel",
        config=f"{_NEMO}:MistralConfig7B",
        fields={"cp_comm_type": None},
    ),
    trtllm=TensorRTLLM(decoder="llama", architecture="MistralForCausalLM"),
    window=Window(default=4096),
)
