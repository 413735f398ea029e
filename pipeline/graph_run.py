"""The whole graph: DVC runs what is not up to date, then what came out is shown.

Behind `stage=all` and `stage=retrain`; imports nothing heavy.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline import compose, summary, summary_view, tracking
from pipeline.config import Config
from pipeline.errors import EXIT_CODE_FILE, ConfigError
from pipeline.graph import ROOT, read_graph
from pipeline.runner import GRAPH_LOCK, hold


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
        with hold(config.artifacts, GRAPH_LOCK):
            compose.write_params(tree)
            code = subprocess.run(
                [sys.executable, "-m", "dvc", "repro"], cwd=ROOT, env=environment, check=False
            ).returncode
        code = int(left.read() or 1) if code else 0
    stages = [n.name for n in read_graph(tree).values() if n.name != "pretrain"]
    tracking.track_reused(config.artifacts, config.tracking, stages)
    if code == 0:
        found = summary.write_summary(config.artifacts, config, since=since)
        summary_view.show_summary(found, config.artifacts)
    delivery = tracking.wait_until_sent(config.artifacts, config.tracking, timeout=60)
    summary_view.show_delivery(delivery)
    return code


def refuse_other_artifacts(config: Config) -> None:
    """Raise ConfigError unless the artifacts are where dvc.yaml has them."""
    if config.artifacts.resolve() != ROOT / "artifacts":
        raise ConfigError(
            f"artifacts={config.artifacts} cannot be set for the whole graph: dvc.yaml keeps it in "
            "artifacts; run single stages with artifacts=…"
        )
