"""Rows read and rendered by tasks on a Ray cluster, given back in the order of the files.

A file is cut into pieces; a task reads one and renders its rows. Which rows are kept depends on the
rows before them, so that is decided by the process that asks. The rows, their order and numbers are
those of one process, whatever the pieces. The files and the model's folder must be at the same
place on each node, and the pipeline installed there.
"""

import functools
import os
import socket
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config.prepare import PrepareConfig
from pipeline.core.errors import MissingRuntime, PipelineError
from pipeline.core.extras import require
from pipeline.data.finding import size_of
from pipeline.data.preparation.sources import Source
from pipeline.data.readers.record import PIECE_BYTES, Piece
from pipeline.data.reading import pieces, read_piece
from pipeline.data.rendering import Rendered, Renderer
from pipeline.data.rows import Conversation, Rejected
from pipeline.models.chat.renderer import Chat

SETTING = "prepare.engine=ray"
LEAST_BYTES = 2**18  # of a piece
TASKS_A_CORE = 4  # pieces for each core of the cluster, so that all are busy until the end
AHEAD = 2  # tasks for each core that run or wait to be taken
CONNECT_SECONDS = 10  # Ray itself would wait for minutes

Row = tuple[Rendered | Rejected, frozenset[str]]


@dataclass(frozen=True)
class Rendering:
    """How tasks render rows.

    model: the folder with tokenizer and template. settings, serves_tools: as Renderer.of has them.
    """

    model: Path
    settings: PrepareConfig
    serves_tools: bool


def rendered_rows(
    sources: Sequence[Source], rendering: Rendering
) -> Iterator[tuple[Rendered | Rejected, frozenset[str], int]]:
    """Every row, its fields without an effect, and the bytes of files that were read since the last
    one.

    Args:
        sources: files by absolute paths, which are there on each node.
        rendering: its settings name the cluster; without one, Ray is started on this machine for
            the time being.

    Raises:
        DataError: a file cannot be used. MissingRuntime: Ray is not installed, or does not start.
        PipelineError: the cluster lost a task for good.
    """
    require("ray", SETTING, "leave the setting out")
    with _cluster(rendering.settings.ray_address) as ray:
        cores = max(1, int(ray.cluster_resources().get("CPU", 1)))
        total = sum(size_of(source.file) for source in sources)
        size = min(PIECE_BYTES, max(LEAST_BYTES, total // (TASKS_A_CORE * cores)))
        # Each node reads its share; by default Ray would fill the first one.
        task = ray.remote(num_cpus=1, scheduling_strategy="SPREAD")(_render_piece)
        waiting: deque[tuple[Source, int, Any]] = deque()
        jobs = _jobs(sources, size)
        while True:
            while len(waiting) < AHEAD * cores and (job := next(jobs, None)):
                source, piece, bytes_ = job
                waiting.append((source, bytes_, task.remote(source, piece, rendering)))
            if not waiting:
                return
            source, bytes_, reference = waiting.popleft()
            try:
                found = ray.get(reference)
            except ray.exceptions.RayError as error:
                lines = str(error).strip().splitlines() or [type(error).__name__]
                raise PipelineError(
                    f"{SETTING}: a task that reads {source.name} failed ({lines[-1][:200]}): run "
                    "the same command again, or without the setting"
                ) from error
            if isinstance(found, PipelineError):
                raise found
            for row, left_out in found:
                yield row, left_out, bytes_
                bytes_ = 0


def _jobs(sources: Iterable[Source], size: int) -> Iterator[tuple[Source, Piece, int]]:
    """The pieces of all files in order, each with its share of the file's bytes."""
    for source in sources:
        parts = pieces(source.file, size)
        for part in parts:
            yield source, part, size_of(source.file) // len(parts)


def _render_piece(source: Source, piece: Piece, rendering: Rendering) -> list[Row] | PipelineError:
    """The task. What a user can act on is returned: Ray would wrap it in a traceback."""
    rendered: list[Row] = []
    try:
        renderer = _renderer(rendering)
        for read in read_piece(source.file, source.name, piece, source.options):
            row, is_test = source.asked(read)
            left_out = row.left_out if isinstance(row, Conversation) else frozenset[str]()
            rendered.append((renderer.render(row, is_test=is_test), left_out))
    except PipelineError as error:
        return error
    return rendered


@functools.cache
def _renderer(rendering: Rendering) -> Renderer:
    """One for each process: a tokenizer takes a second to load."""
    chat = Chat.load(rendering.model)
    return Renderer.of(rendering.settings, chat, lambda: rendering.serves_tools)


@contextmanager
def _cluster(address: str | None) -> Iterator[Any]:
    """Ray, connected to a cluster, or to one that is started on this machine's loopback.

    Raises:
        MissingRuntime: it does not start, or there is none at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report to its makers
    import ray

    if address is not None:
        _check_reachable(address, ray.util.get_node_ip_address())
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is None:
        # "local" also where RAY_ADDRESS is set: a setting decides, not the environment.
        options |= {"address": "local", "include_dashboard": False,
                    "_node_ip_address": "127.0.0.1"}  # fmt: skip
    else:
        options["address"] = address
    try:
        ray.init(**options)
    except Exception as error:  # Ray raises ConnectionError, RuntimeError, ValueError and its own
        raise _no_answer(address, error) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _check_reachable(address: str, own: str) -> None:
    """
    Args:
        own: this machine's address, which Ray takes in place of localhost.

    Raises:
        MissingRuntime: nothing listens at HOST:PORT.
    """
    host, _, port = address.rpartition(":")
    if not port.isdigit():
        return  # auto, or an address of another kind, which Ray checks
    host = own if host in ("localhost", "127.0.0.1") else host.strip("[]")
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise _no_answer(address, error) from error


def _no_answer(address: str | None, error: Exception) -> MissingRuntime:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if address is None:
        return MissingRuntime(
            f"{SETTING}: Ray does not start ({lines[0][:200]}): start it with `ray start --head` "
            "and set prepare.ray_address=auto, or leave prepare.engine out"
        )
    return MissingRuntime(
        f"prepare.ray_address={address}: Ray does not answer ({lines[0][:200]}): check the cluster "
        "with `ray status`, or leave prepare.engine out"
    )
