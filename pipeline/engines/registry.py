"""The table of engines. Each record is defined beside its engine and says all that is known of it.

    from pipeline.engines.registry import ENGINES
    ENGINES["vllm"].missing(profile)

Their order is the order of profiles (selection.py): NVIDIA NIM's, best first, then ours.
"""

from pipeline.config.engine import EngineConfig
from pipeline.core.tables import Table
from pipeline.engines.hf.record import HF
from pipeline.engines.onnxruntime.record import ONNXRUNTIME
from pipeline.engines.record import EngineRecord
from pipeline.engines.remote.record import REMOTE
from pipeline.engines.triton.record import TRITON
from pipeline.engines.trtllm.record import TRTLLM
from pipeline.engines.vllm.record import VLLM

AUTO = "auto"  # of engine.name: the best profile of any engine
ENGINES: Table[EngineRecord] = Table("engine", TRTLLM, VLLM, ONNXRUNTIME, HF, TRITON, REMOTE)


def named(name: str) -> EngineRecord | None:
    """The engine that engine.name asks for; None for auto."""
    return None if name == AUTO else ENGINES[name]


def behind(engine: EngineConfig) -> EngineConfig:
    """The settings of the engine that computes: those given, or of the one that a server hosts.

    Raises:
        ConfigError: the server does not take its arguments.
    """
    record = named(engine.name)
    return record.hosts(engine).engine if record and record.hosts else engine


def first_with(feature: str) -> EngineRecord:
    """The first engine of the table that can have a feature (EngineRecord.features)."""
    return next(record for record in ENGINES.values() if feature in record.features)
