"""The model families: everything that the project knows of each, in one record, one file each.

    FAMILIES["qwen2"].layer.linears      # the weights of a layer, by each library's names
    family_of(["LlamaForCausalLM"])      # the family of config.json's architectures
    check_stage("mistral", "import")     # refuse what the family cannot go through
    FAMILIES.add(LLAMA.named("other", "Other", "OtherForCausalLM"))      # add a family

A record names classes of NeMo and imports none.
"""

from collections.abc import Sequence

from pipeline.core.errors import DataError
from pipeline.core.tables import Table
from pipeline.models.families.arcee import ARCEE
from pipeline.models.families.gemma import GEMMA
from pipeline.models.families.gemma2 import GEMMA2
from pipeline.models.families.gemma3 import GEMMA3
from pipeline.models.families.llama import LLAMA
from pipeline.models.families.ministral import MINISTRAL
from pipeline.models.families.mistral import MISTRAL
from pipeline.models.families.mixtral import MIXTRAL
from pipeline.models.families.nemotron import NEMOTRON
from pipeline.models.families.phi3 import PHI3
from pipeline.models.families.qwen2 import QWEN2
from pipeline.models.families.qwen2_moe import QWEN2_MOE
from pipeline.models.families.qwen3 import QWEN3
from pipeline.models.families.qwen3_moe import QWEN3_MOE
from pipeline.models.families.record import Family
from pipeline.models.families.seed_oss import SEED_OSS
from pipeline.models.families.stablelm import STABLELM
from pipeline.models.families.starcoder2 import STARCODER2

FAMILIES: Table[Family] = Table(
    "model family",
    LLAMA,
    QWEN2,
    QWEN3,
    MISTRAL,
    MINISTRAL,
    GEMMA,
    GEMMA2,
    GEMMA3,
    PHI3,
    STARCODER2,
    NEMOTRON,
    ARCEE,
    SEED_OSS,
    STABLELM,
    MIXTRAL,
    QWEN2_MOE,
    QWEN3_MOE,
)


def family_of(architectures: Sequence[str]) -> Family | None:
    """The family of the first name in config.json's `architectures` that one of them has."""
    known = {name: family for family in FAMILIES.values() for name in family.architectures}
    return next((known[name] for name in architectures if name in known), None)


def check_stage(family: str, *stages: str) -> None:
    """Refuse stages that a model of the family cannot go through.

    Raises:
        DataError: names the stage, the reason and what to do instead.
    """
    record = FAMILIES[family]
    for stage in stages:
        if reason := record.refused.get(stage):
            raise DataError(f"stage={stage} does not take {record.title} models: {reason}")
