"""A real Slurm cluster of two nodes on this machine, on loopback, without containers.

Needs Debian's slurm-wlm and munge, and root, as whom slurmd runs jobs:

    apt-get install --no-install-recommends slurm-wlm munge
"""

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType

import psutil
import pytest

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "scontrol", "scancel")
PARTITION, NODES = "batch", ("n1", "n2")


def _missing() -> str:
    absent = [name for name in PROGRAMS if not shutil.which(name)]
    if absent:
        return f"{', '.join(absent)} not installed: apt-get install slurm-wlm munge"
    return "" if os.getuid() == 0 else "slurmd runs jobs as other users only when it is root"


needs_slurm = pytest.mark.skipif(bool(_missing()), reason=_missing() or "installed")


class Cluster:
    """Runs while its block is open."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        for name in ("state", "spool", "log", "run"):
            (folder / name).mkdir(parents=True)
        self.conf = folder / "slurm.conf"
        self.environment = {**os.environ, "SLURM_CONF": str(self.conf)}

    def __enter__(self) -> "Cluster":
        host = socket.gethostname().partition(".")[0]
        socket_, folder = self._folder / "run/munge.sock", self._folder
        ports = [_free_port() for _ in range(1 + len(NODES))]
        lines = [
            "ClusterName=test",
            f"SlurmctldHost={host}(127.0.0.1)",
            f"SlurmctldPort={ports[0]}",
            "SlurmUser=root",
            "SlurmdUser=root",
            "AuthType=auth/munge",
            f"AuthInfo=socket={socket_}",
            f"StateSaveLocation={folder}/state",
            f"SlurmdSpoolDir={folder}/spool/%n",
            f"SlurmctldPidFile={folder}/run/ctld.pid",
            f"SlurmdPidFile={folder}/run/%n.pid",
            f"SlurmctldLogFile={folder}/log/ctld",
            f"SlurmdLogFile={folder}/log/%n",
            "ProctrackType=proctrack/linuxproc",
            "TaskPlugin=task/none",
            "SwitchType=switch/none",
            "MpiDefault=none",
            "SelectType=select/cons_tres",
            "SelectTypeParameters=CR_Core",
            "ReturnToService=2",
            "SlurmdTimeout=10",
            "KillWait=5",
            "SchedulerParameters=sched_interval=1,sched_min_interval=0",
            *(
                f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=2 "
                "RealMemory=2000 State=UNKNOWN"
                for node, port in zip(NODES, ports[1:], strict=True)
            ),
            f"PartitionName={PARTITION} Nodes={','.join(NODES)} Default=YES State=UP",
        ]
        self.conf.write_text("\n".join([*lines, ""]))
        key = folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        munge = ["munged", f"--key-file={key}", f"--socket={socket_}", "--force"]
        munge += [f"--pid-file={folder}/run/munge.pid", f"--log-file={folder}/log/munge"]
        self._run(*munge, f"--seed-file={folder}/run/munge.seed")
        self._run("slurmctld")
        for node in NODES:
            self.start_node(node)
        self._wait("idle", len(NODES))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._run("scancel", "--user=root")
        time.sleep(1)
        for name in (*NODES, "ctld", "munge"):
            self._end(name)

    def start_node(self, node: str) -> None:
        self._run("slurmd", "-N", node)

    def _end(self, name: str) -> None:
        file = self._folder / "run" / f"{name}.pid"
        if file.exists():
            try:
                process = psutil.Process(int(file.read_text()))
                process.terminate()
                process.wait(10)
            except psutil.Error:
                return

    def _run(self, *command: str, check: bool = True) -> str:
        return subprocess.run(
            command, env=self.environment, check=check, text=True, capture_output=True, timeout=60
        ).stdout

    def _wait(self, state: str, count: int) -> None:
        for _ in range(60):
            if self._run("sinfo", "-h", "-N", "-o", "%t").split().count(state) >= count:
                return
            time.sleep(0.5)
        raise AssertionError(self._run("sinfo", "-N", "-l"))


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
