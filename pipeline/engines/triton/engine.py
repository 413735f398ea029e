"""Triton as an engine: a tritonserver on loopback, asked over gRPC, restarted when it dies."""

import asyncio
import socket
from pathlib import Path

from pipeline.core.console import get_console
from pipeline.core.errors import PipelineError
from pipeline.engines.description import Description
from pipeline.engines.kserve.engine import KServeEngine
from pipeline.engines.triton.arguments import TOKENS
from pipeline.engines.triton.repository import REPOSITORY
from pipeline.engines.triton.server import TritonServer

FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.5, 30.0


class TritonEngine(KServeEngine):
    """An engine (base.Engine) that a tritonserver of this process runs.

    Args:
        folder: what stage=build wrote.

    Raises:
        MissingRuntime: Triton is not here.
        PipelineError: it does not load the repository; says why.
    """

    def __init__(self, folder: Path, description: Description, *, max_queue: int) -> None:
        self._server = TritonServer(
            folder / REPOSITORY, free_ports(3), description.settings["server"]
        )
        try:
            self._server.start()
            self._server.wait_until_ready()
            super().__init__(
                f"grpc://127.0.0.1:{self._server.grpc}",
                description.settings["model"] + TOKENS,
                {},
                description,
                max_queue=max_queue,
            )
        except BaseException:
            self._server.close()
            raise

    @property
    def server(self) -> TritonServer:
        return self._server

    def down(self) -> str | None:
        code = self._server.exit_code()
        if code is not None and self._down is None:
            self.lose(f"tritonserver ended with exit code {code}")
        return self._down

    def close(self) -> None:
        super().close()
        self._server.close()

    async def _wait_for_it(self) -> None:
        """Wait until it answers; start it again if it has ended."""
        wait = FIRST_WAIT_SECONDS
        while True:
            await asyncio.sleep(wait)
            if self._server.exit_code() is not None:
                wait = min(2 * wait, LONGEST_WAIT_SECONDS)
                try:
                    self._server.start()
                    await asyncio.to_thread(self._server.wait_until_ready)
                except (PipelineError, OSError) as error:
                    get_console().print(f"[red]not ready[/]: {error}", soft_wrap=True)
                    continue
            if await self._transport.is_ready(self._model):
                self._down = None
                get_console().print("[green]ready[/]: tritonserver answers again")
                return


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()
