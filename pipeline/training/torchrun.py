"""Starts the ranks of this machine with torchrun's agent, and says which of them died and why.

    python -m pipeline.training.torchrun NODES PROCESSES MODULE [ARGUMENT …]

runs `python -m MODULE ARGUMENT …` in PROCESSES processes, one a GPU or CPU, each with torchrun's
variables (RANK, WORLD_SIZE, MASTER_ADDR …). With NODES over 1 this machine is one of several that
were started alike, and torchrun's own variables say which: PET_NODE_RANK, PET_MASTER_ADDR,
PET_MASTER_PORT. When one rank ends with an error, the agent ends the others (SIGTERM, after 30 s
SIGKILL) and this process reports the first that failed as an event on standard output.

A process of its own, so that the stage that waits for it needs no torch.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING
from uuid import uuid4

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

MARK = "pipeline-event "  # what begins a line of ours among what libraries print
NODE_RANK, MASTER, MASTER_PORT = "PET_NODE_RANK", "PET_MASTER_ADDR", "PET_MASTER_PORT"
PORT = 29500  # torchrun's own, of the first machine
JOIN_SECONDS = 1800  # that machines wait for one another: one may be reading 100 GB of rows


def emit(event: dict[str, object]) -> None:
    """Tell the process that started the ranks."""
    print(MARK + json.dumps(event), flush=True)


def options(nodes: int, processes: int) -> list[str]:
    """torchrun's options; those of several machines come from its variables."""
    if nodes == 1:
        # What --standalone stands for: a free port of this machine's own.
        alone = ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", f"--rdzv-id={uuid4()}"]
        return [*alone, f"--nproc-per-node={processes}"]
    return [
        f"--nnodes={nodes}",
        f"--nproc-per-node={processes}",
        f"--rdzv-conf=timeout={JOIN_SECONDS}",
    ]


def run(nodes: int, processes: int, command: list[str]) -> int:
    """Run until every rank here has ended; 0, or 1 if one failed, which is reported.

    128 and the signal's number if this process is told to end; so are the ranks.
    """
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch

    parsed = torchrun.parse_args([*options(nodes, processes), "-m", *command])
    parsed.master_port = parsed.master_port or PORT
    config, program, arguments = torchrun.config_from_args(parsed)
    try:
        elastic_launch(config, program)(*arguments)
    except SignalException as error:  # Ctrl-C, or the stage that waits for this one is ending
        return 128 + error.sigval
    except ChildFailedError as error:
        rank, failure = _first(error.failures)
        emit({"died": in_words(rank, nodes * processes, failure)})
        return 1
    return 0


def _first(failures: dict[int, ProcessFailure]) -> tuple[int, ProcessFailure]:
    """The rank that was killed if one was, else the first that failed: the others fail because
    they lose it, within the same second."""
    return min(failures.items(), key=lambda item: (item[1].exitcode >= 0, item[1].timestamp))


def in_words(rank: int, ranks: int, failure: ProcessFailure) -> str:
    """Which rank ended how, and what that often means."""
    who = f"rank {rank} of {ranks} (process {failure.pid})"
    if failure.exitcode >= 0:
        return f"{who} ended with exit code {failure.exitcode}: its last lines are above"
    name = failure.signal_name()
    often = {
        "SIGKILL": ": the system does so when memory runs out (`dmesg` tells), or someone did",
        "SIGSEGV": ": a fault in a native library; its last lines are above",
        "SIGABRT": ": a library gave up; its last lines are above",
    }
    return f"{who} was killed by {name}{often.get(name, '')}"


if __name__ == "__main__":
    assert len(sys.argv) > 3, __doc__
    sys.exit(run(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]))
