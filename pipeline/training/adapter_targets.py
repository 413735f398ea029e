"""Which linear layers of a model have an adapter: names and groups of settings, resolved.

A name is the last part of a layer's name in Hugging Face, as q_proj, as PEFT's target_modules have
it. Megatron-Core fuses some layers into one (query, key and value; gate and up), which then share
one A; an adapter on a part of them trains the rows of B that belong to it.
"""

from collections.abc import Mapping, Sequence

from pipeline.core.errors import ConfigError, shown
from pipeline.models.families.record import Layer, Linear, Part

ALL = "all-linear"
ATTENTION, MLP = "attention", "mlp"
# In the order of the model.
_SAVED = {"embed_tokens": "embedding.word_embeddings.weight", "lm_head": "output_layer.weight"}
GROUPS = (ATTENTION, MLP, ALL)


def saved_modules(names: Sequence[str], *, tied: bool) -> dict[str, str]:
    """Megatron-Core's parameters that are trained whole beside an adapter, by their HF names.

    names: as in finetune.adapter.modules_to_save. tied: the output layer is the embedding.

    Raises:
        ConfigError: a name twice, or an output layer of its own where there is none.
    """
    if len(set(names)) < len(names):
        raise ConfigError(f"finetune.adapter.modules_to_save has {names[0]} twice: name it once")
    if tied and "lm_head" in names:
        raise ConfigError(
            "finetune.adapter.modules_to_save has lm_head, and the output layer of this model is "
            "its embedding: name embed_tokens, which trains both"
        )
    return {name: parameter for name, parameter in _SAVED.items() if name in names}


def group_of(linear: Linear) -> str:
    return ATTENTION if linear.megatron.startswith("self_attention.") else MLP


def short(part: Part) -> str:
    """A layer's name as settings give it: q_proj for self_attn.q_proj."""
    return part.hf.rpartition(".")[2]


def targets(names: Sequence[str], layer: Layer) -> Mapping[str, tuple[Part, ...]]:
    """Megatron-Core's layers with an adapter, by name, and the HF layers in each that have one.

    Raises:
        ConfigError: a name that the model does not have; says which there are.
    """
    known = [short(part) for linear in layer.linears for part in linear.parts]
    for name in names:
        if name not in (*known, *GROUPS):
            raise ConfigError(
                f"finetune.adapter.target_modules has {shown(name)}, and the model has no linear "
                f"layer of this name: choose from {', '.join(dict.fromkeys(known))}, or "
                f"{', '.join(GROUPS)}"
            )
    wanted = set(names)
    found = {}
    for linear in layer.linears:
        whole = bool(wanted & {ALL, group_of(linear)})
        parts = tuple(part for part in linear.parts if whole or short(part) in wanted)
        if parts:
            found[linear.megatron] = parts
    return found
