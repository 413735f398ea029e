"""Architectures that are known and refused: whose limit it is, and the nearest supported family.

reason_of(["MambaForCausalLM"])      # a sentence for the refusal, or None
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Unsupported:
    """Architectures that are refused for one reason. nearest: a supported architecture."""

    architectures: tuple[str, ...]
    reason: str
    nearest: str


_CODE = (
    "transformers 4.57 has no class for it, and the code in such a folder is never run "
    "(transformers' limit)"
)
_NO_IMPORTER = (
    "NeMo 2.7.3 has no importer for it, and no record describes it yet (NeMo's limit and ours)"
)
_SEES = "it reads images or sound beside text, and only text models are trained (our limit)"
_ENCODES = "it gives vectors or scores, and only models that write text are trained (our limit)"
_FUSED_EXPERTS = (
    "it keeps all experts of a layer in one tensor, which this pipeline's weight map does not take "
    "apart yet (our limit)"
)
_RECURRENT = (
    "Megatron-Core's state-space layers need CUDA kernels of mamba-ssm, which are not part of this "
    "pipeline (Megatron-Core's limit)"
)

UNSUPPORTED = (
    Unsupported(
        ("BaichuanForCausalLM", "BaiChuanForCausalLM", "ChatGLMModel", "ChatGLMForCausalLM"),
        _CODE,
        "LlamaForCausalLM",
    ),
    Unsupported(
        ("ChatGLMForConditionalGeneration", "DeciLMForCausalLM"), _CODE, "LlamaForCausalLM"
    ),
    Unsupported(("QWenLMHeadModel", "InternLM2ForCausalLM"), _CODE, "Qwen2ForCausalLM"),
    Unsupported(("NemotronHForCausalLM", "HyenaForCausalLM"), _CODE, "LlamaForCausalLM"),
    Unsupported(
        (
            "MambaForCausalLM",
            "Mamba2ForCausalLM",
            "JambaForCausalLM",
            "Zamba2ForCausalLM",
            "FalconMambaForCausalLM",
        ),
        _RECURRENT,
        "LlamaForCausalLM",
    ),
    Unsupported(
        ("Qwen3NextForCausalLM",),
        "NeMo 2.7.3 has no layer of its linear attention (NeMo's limit)",
        "Qwen3MoeForCausalLM",
    ),
    Unsupported(
        ("GPTBigCodeForCausalLM",),
        "its learned positions and its one key-value head beside many heads are in no record yet "
        "(our limit)",
        "Starcoder2ForCausalLM",
    ),
    Unsupported(("Gemma3ForConditionalGeneration",), _SEES, "Gemma3ForCausalLM"),
    Unsupported(("GptOssForCausalLM",), _FUSED_EXPERTS, "MixtralForCausalLM"),
    Unsupported(("Llama4ForCausalLM",), _FUSED_EXPERTS, "Qwen3MoeForCausalLM"),
    Unsupported(
        ("DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM"),
        "no record describes multi-head latent attention yet (our limit)",
        "Qwen3MoeForCausalLM",
    ),
    Unsupported(
        ("PhimoeForCausalLM", "OlmoeForCausalLM", "GraniteMoeForCausalLM", "DbrxForCausalLM"),
        _NO_IMPORTER,
        "MixtralForCausalLM",
    ),
    Unsupported(
        ("Ernie4_5_MoeForCausalLM", "Glm4MoeForCausalLM", "Glm4ForCausalLM"),
        _NO_IMPORTER,
        "Qwen3MoeForCausalLM",
    ),
    Unsupported(
        (
            "GPT2LMHeadModel",
            "GPTNeoXForCausalLM",
            "GPTJForCausalLM",
            "OPTForCausalLM",
            "BloomForCausalLM",
            "FalconForCausalLM",
            "MptForCausalLM",
            "OlmoForCausalLM",
            "Olmo2ForCausalLM",
            "GraniteForCausalLM",
            "CohereForCausalLM",
            "Cohere2ForCausalLM",
            "PhiForCausalLM",
            "SmolLM3ForCausalLM",
            "Exaone4ForCausalLM",
        ),
        _NO_IMPORTER,
        "LlamaForCausalLM",
    ),
    Unsupported(
        (
            "Llama4ForConditionalGeneration",
            "MllamaForConditionalGeneration",
            "LlavaForConditionalGeneration",
            "Mistral3ForConditionalGeneration",
            "Qwen2VLForConditionalGeneration",
            "Qwen2_5_VLForConditionalGeneration",
            "Qwen3VLForConditionalGeneration",
            "Phi4MultimodalForCausalLM",
        ),
        _SEES,
        "LlamaForCausalLM",
    ),
    Unsupported(
        (
            "T5ForConditionalGeneration",
            "BartForConditionalGeneration",
            "MT5ForConditionalGeneration",
        ),
        "it is an encoder with a decoder, and only decoders are trained (our limit)",
        "LlamaForCausalLM",
    ),
    Unsupported(
        (
            "LlamaBidirectionalModel",
            "LlamaBidirectionalForSequenceClassification",
            "LlamaForSequenceClassification",
            "Qwen2ForSequenceClassification",
            "Qwen3ForSequenceClassification",
            "BertModel",
            "BertForMaskedLM",
            "ModernBertForMaskedLM",
            "RobertaForMaskedLM",
            "XLMRobertaModel",
        ),
        _ENCODES,
        "LlamaForCausalLM",
    ),
)
_BY_NAME: Mapping[str, Unsupported] = {
    name: record for record in UNSUPPORTED for name in record.architectures
}


def reason_of(architectures: Sequence[str]) -> str | None:
    """Why the first known name of config.json's `architectures` is refused, and what is nearest."""
    record = next((_BY_NAME[name] for name in architectures if name in _BY_NAME), None)
    if record is None:
        return None
    return f"{record.reason}; the nearest supported architecture is {record.nearest}"
