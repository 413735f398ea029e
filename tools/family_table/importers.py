"""NeMo's importers of Hugging Face models, and what this pipeline does with each one's models.

IMPORTERS["GemmaModel"]      # architectures that it imports
verdict("GemmaForCausalLM")  # the family that takes it, or why it is refused
installed()                  # NeMo's importers, read from its source
"""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

from pipeline.models.families import family_of
from pipeline.models.families.unsupported import UNSUPPORTED

# NeMo's model class → names in config.json's `architectures`.
IMPORTERS: dict[str, tuple[str, ...]] = {
    "Baichuan2Model": ("BaichuanForCausalLM",),
    "ChatGLMModel": ("ChatGLMModel",),
    "DeepSeekModel": ("DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM"),
    "GPTOSSModel": ("GptOssForCausalLM",),
    "Gemma2Model": ("Gemma2ForCausalLM",),
    "Gemma3Model": ("Gemma3ForCausalLM",),
    "GemmaModel": ("GemmaForCausalLM",),
    "HyenaModel": ("HyenaForCausalLM",),
    "LlamaEmbeddingModel": ("LlamaBidirectionalModel",),
    "LlamaModel": ("LlamaForCausalLM", "Llama4ForConditionalGeneration", "Llama4ForCausalLM"),
    "LlamaNemotronModel": ("LlamaForCausalLM", "DeciLMForCausalLM"),
    "MambaModel": ("NemotronHForCausalLM",),
    "MistralModel": ("MistralForCausalLM",),
    "MixtralModel": ("MixtralForCausalLM",),
    "NemotronModel": ("NemotronForCausalLM",),
    "Phi3Model": ("Phi3ForCausalLM",),
    "Qwen2Model": ("Qwen2ForCausalLM", "Qwen2MoeForCausalLM"),
    "Qwen3Model": ("Qwen3ForCausalLM", "Qwen3MoeForCausalLM"),
    "ReRankerModel": ("LlamaBidirectionalForSequenceClassification",),
    "Starcoder2Model": ("Starcoder2ForCausalLM",),
    "StarcoderModel": ("GPTBigCodeForCausalLM",),
}


def verdict(architecture: str) -> tuple[str, str]:
    """The title of the family that takes an architecture and "", or "" and why it is refused.

    Raises:
        KeyError: nothing is known of it.
    """
    if family := family_of([architecture]):
        return family.title, ""
    for record in UNSUPPORTED:
        if architecture in record.architectures:
            return "", record.reason
    raise KeyError(architecture)


def installed() -> set[str]:
    """NeMo's model classes with an importer of Hugging Face models; its source is not run."""
    spec = importlib.util.find_spec("nemo")
    assert spec is not None
    assert spec.submodule_search_locations
    folder = Path(spec.submodule_search_locations[0]) / "collections" / "llm" / "gpt" / "model"
    found = set()
    for file in folder.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            for call in getattr(node, "decorator_list", ()):
                if isinstance(call, ast.Call) and ast.unparse(call.func) == "io.model_importer":
                    model, extension = [*call.args, *(k.value for k in call.keywords)]
                    if ast.literal_eval(extension) == "hf":
                        found.add(ast.unparse(model))
    return found


def table() -> str:
    """A row for each importer, as Markdown."""
    rows = ["| NeMo's importer | `architectures` | here |", "|---|---|---|"]
    for model, architectures in IMPORTERS.items():
        for name in architectures:
            title, reason = verdict(name)
            rows.append(f"| `{model}` | `{name}` | {title or f'refused: {reason}'} |")
    return "\n".join(rows)


def counts() -> str:
    """How many importers have a family here, in words."""
    taken = sum(any(verdict(name)[0] for name in names) for names in IMPORTERS.values())
    return (
        f"NeMo 2.7.3 imports Hugging Face models by {len(IMPORTERS)} classes. This pipeline takes "
        f"models of {taken} of them, and refuses those of the others with whose limit it is."
    )
