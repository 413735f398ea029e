"""The whole graph: DVC runs what is not up to date, then what came out is shown.

Behind `stage=all` and `stage=retrain`; imports nothing heavy.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from ctypes import CDLL
from itertools import chain
from pathlib import Path
from typing import Any

from pipeline.config.schema import Config
from pipeline.core.artifact import kept
from pipeline.core.console import get_console
from pipeline.core.errors import EXIT_CODE_FILE, Busy, ConfigError
from pipeline.core.paths import ROOT
from pipeline.orchestration import compose, summary, summary_view
from pipeline.orchestration.graph import read_graph
from pipeline.orchestration.runner import GRAPH_LOCK, hold
from pipeline.tracking import client as tracking

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def run_graph(tree: Mapping[str, Any], config: Config) -> int:
    """Bring every artifact of the graph up to date; the exit code of the stage that failed, or 0.

    tree: the composed configuration; config: the same, validated.

    Raises:
        ConfigError: artifacts are elsewhere than dvc.yaml has them. Busy: another run goes on.
    """
    refuse_other_artifacts(config)
    since = time.time()
    # DVC's commands say `python`: the one that runs now, its environment activated or not.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    environment = {**os.environ, "PATH": path, **tracking.new_group()}
    with tempfile.NamedTemporaryFile("r") as left:
        environment[EXIT_CODE_FILE] = left.name
        # Each stage that DVC starts reads params.yaml again: no other run may write it meanwhile.
        with hold(config.artifacts, GRAPH_LOCK) as lock:
            _refuse_beside_dvc()
            _forget_what_was_not_made(config.artifacts)
            compose.write_params(tree)
            code = _repro(environment, lock)
        code = int(left.read() or 1) if code else 0
    stages = [n.name for n in read_graph(tree).values() if n.name != "pretrain"]
    tracking.track_reused(config.artifacts, config.tracking, stages)
    if code == 0:
        found = summary.write_summary(config.artifacts, config, since=since)
        summary_view.show_summary(found, config.artifacts)
    delivery = tracking.wait_until_sent(config.artifacts, config.tracking, timeout=60)
    summary_view.show_delivery(delivery)
    if not delivery.registered and (
        line := tracking.waiting_line(config.artifacts, config.tracking)
    ):
        get_console().print(line)
    return code


def _repro(environment: Mapping[str, str], lock: int) -> int:
    """DVC's exit code. It is interrupted with this process, also where only this one is told to
    end, and ends with it. lock: descriptor that it keeps, so that no other run begins before."""
    libc = CDLL(None)
    with subprocess.Popen(
        [sys.executable, "-m", "dvc", "repro"],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        pass_fds=[lock],
        process_group=0,
        preexec_fn=lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM),
    ) as process:
        before = signal.signal(signal.SIGTERM, _interrupt)
        try:
            return process.wait()
        except KeyboardInterrupt:
            os.killpg(process.pid, signal.SIGINT)  # DVC, its shell and the stage
            process.wait()
            raise
        finally:
            signal.signal(signal.SIGTERM, before)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _refuse_beside_dvc() -> None:
    """Raise Busy while a `dvc repro` or `dvc exp run` of its own reads params.yaml."""
    try:
        held = json.loads((ROOT / ".dvc/tmp/rwlock").read_text())
    except (OSError, ValueError):
        return
    entries = [*held.get("write", {}).values(), *chain(*held.get("read", {}).values())]
    for pid in {entry["pid"] for entry in entries}:
        if Path(f"/proc/{pid}").exists():
            raise Busy(f"DVC (process {pid}) runs the graph of {ROOT}: wait for it, or end it")


def _forget_what_was_not_made(artifacts: Path) -> None:
    """Take out of dvc.lock what it says of stages whose artifacts were made with other settings.

    DVC records the params.yaml that it finds when a stage has ended. Where another run has written
    one meanwhile, it would take the artifact for what was never made; so it looks again, and the
    runner knows.
    """
    file = ROOT / "dvc.lock"
    if not file.is_file():
        return
    import yaml

    lock = yaml.safe_load(file.read_text()) or {}
    untrue = []
    for stage, entry in lock.get("stages", {}).items():
        made = next((m for place, m in kept(artifacts, stage) if place.name == stage), None)
        said = entry.get("params", {}).get(compose.PARAMS.name)
        if made and said is not None and made.config != said:
            untrue.append(stage)
    if untrue:
        for stage in untrue:
            del lock["stages"][stage]
        temporary = file.with_suffix(".tmp")
        temporary.write_text(yaml.safe_dump(lock, sort_keys=False))
        temporary.replace(file)


def refuse_other_artifacts(config: Config) -> None:
    """Raise ConfigError unless the artifacts are where dvc.yaml has them."""
    if config.artifacts.resolve() != ROOT / "artifacts":
        raise ConfigError(
            f"artifacts={config.artifacts} cannot be set for the whole graph: dvc.yaml keeps it in "
            "artifacts; run single stages with artifacts=…"
        )
