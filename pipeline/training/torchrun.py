"""Starts the ranks of this machine with torchrun's agent, and reports which of them died and why.

    python -m pipeline.training.torchrun NODES PROCESSES MODULE [ARGUMENT …]

runs `python -m MODULE ARGUMENT …` in PROCESSES processes, one for each GPU or CPU, with torchrun's
variables (RANK, WORLD_SIZE, MASTER_ADDR …). With NODES over 1 this machine is one of several that
run the same command, and torchrun's own variables say which: PET_NODE_RANK, PET_MASTER_ADDR,
PET_MASTER_PORT. When a rank ends with an error, the agent stops the others (SIGTERM, after 30 s
SIGKILL) and this process reports the first that failed as an event on standard output.

It is a process of its own, so that the stage that waits for it needs no torch.
"""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING
from uuid import uuid4

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

MARK = "pipeline-event "  # begins each line of ours, as libraries print too
NODE_RANK, MASTER, MASTER_PORT = "PET_NODE_RANK", "PET_MASTER_ADDR", "PET_MASTER_PORT"
PORT = 29500  # torchrun's default, on the first machine
AGENT = "PIPELINE_AGENT"  # environment variable: pid of the process that starts the ranks
JOIN_SECONDS = 1800  # for which machines wait for one another: one may read 100 GB of rows


def emit(event: dict[str, object]) -> None:
    """Report to the process that started the ranks."""
    print(MARK + json.dumps(event), flush=True)


def options(nodes: int, processes: int) -> list[str]:
    """torchrun's options; those of several machines come from its variables."""
    if nodes == 1:
        # What --standalone means: a free port of this machine.
        alone = ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", f"--rdzv-id={uuid4()}"]
        return [*alone, f"--nproc-per-node={processes}"]
    return [
        f"--nnodes={nodes}",
        f"--nproc-per-node={processes}",
        f"--rdzv-conf=timeout={JOIN_SECONDS}",
    ]


def run(nodes: int, processes: int, command: list[str]) -> int:
    """Run until every rank here has ended. Returns the exit code.

    0; 1 if a rank failed, which is reported; 128 plus the signal's number if a signal ended this
    process and its ranks.
    """
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch

    os.environ[AGENT] = str(os.getpid())
    parsed = torchrun.parse_args([*options(nodes, processes), "-m", *command])
    parsed.master_port = parsed.master_port or PORT
    config, program, arguments = torchrun.config_from_args(parsed)
    try:
        elastic_launch(config, program)(*arguments)
    except SignalException as error:  # Ctrl-C, or the stage that waits for this process ends
        return 128 + error.sigval
    except ChildFailedError as error:
        rank, failure = _first(error.failures)
        emit({"died": in_words(rank, nodes * processes, failure)})
        return 1
    return 0


def _first(failures: dict[int, ProcessFailure]) -> tuple[int, ProcessFailure]:
    """The rank that was killed if there is one, else the first that failed.

    The others fail within the same second, because they lose it.
    """
    return min(failures.items(), key=lambda item: (item[1].exitcode >= 0, item[1].timestamp))


def in_words(rank: int, ranks: int, failure: ProcessFailure) -> str:
    """Which rank ended how, and the usual cause."""
    who = f"rank {rank} of {ranks} (process {failure.pid})"
    if failure.exitcode >= 0:
        return f"{who} ended with exit code {failure.exitcode}: see its last lines above"
    name = failure.signal_name()
    often = {
        "SIGKILL": ": the system does this when memory runs out (see `dmesg`), or someone did",
        "SIGSEGV": ": a crash in a native library; see its last lines above",
        "SIGABRT": ": a library aborted; see its last lines above",
    }
    return f"{who} was killed by {name}{often.get(name, '')}"


if __name__ == "__main__":
    assert len(sys.argv) > 3, __doc__
    sys.exit(run(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]))
