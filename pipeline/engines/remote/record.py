"""What the pipeline must know of another server as an engine (engines/record.py)."""

from pathlib import Path

from pipeline.core.stage import Component
from pipeline.engines.base import Engine
from pipeline.engines.description import Description
from pipeline.engines.record import EngineRecord
from pipeline.engines.remote import description as remote


def _open(folder: Path, description: Description, max_queue: int) -> Engine:
    if remote.is_kserve(description.settings["base_url"]):
        from pipeline.client.addresses import headers
        from pipeline.core.secrets import expand
        from pipeline.engines.kserve.engine import KServeEngine

        return KServeEngine(
            expand(description.settings["base_url"]),
            description.settings["model"],
            headers(remote.API_KEY),
            description,
            max_queue=max_queue,
        )
    from pipeline.engines.remote.engine import RemoteEngine
    from pipeline.models.chat.renderer import Chat

    return RemoteEngine(Chat.load(folder), description, max_queue=max_queue)


REMOTE = EngineRecord(
    name="remote",
    component=Component(
        name="engine/remote",
        version=1,
        libraries=("httpx", "grpcio", "protobuf"),
        modules=(
            "pipeline.engines.remote.record",
            "pipeline.engines.remote.description",
            "pipeline.engines.remote.engine",
            "pipeline.engines.remote.requests",
        ),
    ),
    version=lambda: remote.VERSION,
    open=_open,
    features=remote.FEATURES,
    own_process=True,
    elsewhere=remote.describe,
    check_settings=remote.check_arguments,
)
