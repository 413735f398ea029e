"""Settings of engine=triton for tests."""

from typing import Any

from pipeline.config.engine import EngineConfig
from pipeline.orchestration.compose import compose


def configured(name: str = "triton", **arguments: Any) -> EngineConfig:
    """Settings of a small engine with these arguments."""
    words = ["engine=hf", "engine.max_batch_size=4", "engine.max_seq_len=480"]
    engine = compose([*words, "engine.max_input_len=48"])["engine"]
    return EngineConfig.model_validate({**engine, "name": name, "arguments": arguments})
