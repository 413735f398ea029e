"""The whole configuration, and its validation. Defaults live in conf/, never here.

Hydra composes conf/ and the command line into one tree; `load` turns that into frozen models or
says which field is wrong and what is allowed. Imports nothing heavy.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import Field, ValidationError, model_validator

from pipeline.config.benchmark import BenchmarkConfig
from pipeline.config.data import DataConfig
from pipeline.config.engine import EngineConfig
from pipeline.config.evaluate import EvaluateConfig
from pipeline.config.export import ExportConfig
from pipeline.config.finetune import FinetuneConfig
from pipeline.config.launcher import Launcher
from pipeline.config.model import ModelConfig
from pipeline.config.outside.canary import CanaryConfig
from pipeline.config.outside.clean import CleanConfig
from pipeline.config.outside.graph import GraphConfig
from pipeline.config.outside.inspect import InspectConfig
from pipeline.config.outside.lineage import LineageConfig
from pipeline.config.outside.plan import PlanConfig
from pipeline.config.outside.profiles import ProfilesConfig
from pipeline.config.outside.synthesize import SynthesizeConfig
from pipeline.config.prepare import PrepareConfig
from pipeline.config.quantize import QuantizeConfig
from pipeline.config.register import PullConfig, RegisterConfig, registrable
from pipeline.config.retrain import RetrainConfig
from pipeline.config.retrieval import IndexConfig
from pipeline.config.section import Place, Section, explain
from pipeline.config.serve import ServeConfig
from pipeline.config.tracking import TrackingConfig
from pipeline.core.errors import ConfigError

MOST = 4  # wrong fields that a message names


class Config(Section):
    """The whole configuration of a run."""

    seed: int = Field(
        ge=0, lt=2**32, description="Seed of the split, of training and of calibration"
    )
    artifacts: Place = Field(description="Folder of everything that the stages make")
    verify: bool = Field(
        description="Read every byte of the artifacts that a stage uses, not only of changed files"
    )
    model: ModelConfig
    data: DataConfig
    prepare: PrepareConfig
    finetune: FinetuneConfig
    quantize: QuantizeConfig
    evaluate: EvaluateConfig
    export: ExportConfig
    engine: EngineConfig
    index: IndexConfig
    serve: ServeConfig
    benchmark: BenchmarkConfig
    register_: RegisterConfig = Field(alias="register")
    pull: PullConfig
    canary: CanaryConfig
    retrain: RetrainConfig
    synthesize: SynthesizeConfig
    inspect: InspectConfig
    profiles: ProfilesConfig
    lineage: LineageConfig
    graph: GraphConfig
    clean: CleanConfig
    plan: PlanConfig
    launcher: Launcher
    tracking: TrackingConfig

    @model_validator(mode="before")
    @classmethod
    def _register_by_the_models_name(cls, tree: Any) -> Any:
        """The default, a model's name, may hold dots, as in llama-3.1, which MLflow refuses."""
        model, register = tree["model"], tree["register"]
        if not (isinstance(model, Mapping) and isinstance(register, Mapping)):
            return tree
        if register["name"] != model["name"] or not isinstance(model["name"], str):
            return tree
        return {**tree, "register": {**register, "name": registrable(model["name"])}}


def load(tree: Mapping[str, Any]) -> Config:
    """Validate a composed configuration.

    Raises:
        ConfigError: names each wrong field, what it holds and what is allowed.
    """
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        found = error.errors(include_url=False)
        # A list that is wrong because of an entry has an error of its own.
        inner = {e["loc"][:-1] for e in found}
        lines = [explain(e) for e in found if e["loc"] not in inner]
        more = f"; and {len(lines) - MOST} more" if len(lines) > MOST else ""
        raise ConfigError("; ".join(lines[:MOST]) + more) from None
