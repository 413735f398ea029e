"""Qwen2 and Qwen2.5: Llama's layer with biases on query, key and value."""

from pipeline.models.families.llama import LAYER
from pipeline.models.families.record import ConfigKeys, Family, NemoModel, TensorRTLLM, Window

_NEMO = "nemo.collections.llm.gpt.model.qwen2"
# The first layers have full attention, as many as config.json says.
WINDOW = Window(
    default=4096, by_layer=True, switch="use_sliding_window", from_layer=("max_window_layers", 28)
)

QWEN2 = Family(
    name="qwen2",
    title="Qwen2",
    architectures=("Qwen2ForCausalLM",),
    model_type="qwen2",
    layer=LAYER,
    keys=ConfigKeys(attention_bias=None),
    nemo=NemoModel(model=f"{_NEMO}:Qwen2Model", config=f"{_NEMO}:Qwen2Config"),
    trtllm=TensorRTLLM(
        # ModelOpt writes the weights as it does Llama's, and lacks TensorRT-LLM's own fields.
        decoder="llama",
        architecture="Qwen2ForCausalLM",
        fields={"qwen_type": "qwen2", "attn_bias": True, "mlp_bias": False, "seq_length": 8192},
    ),
    qkv_bias=True,
    window=WINDOW,
)
