"""A stage whose work is copied from a made artifact, so that its commit can be tried in a moment.

How it goes: `plain`; `count`, which says how often the commit renames; `before N` or `after N`,
which is killed at the Nth rename; `slow`, which takes a second, for a signal at a random moment.
The lock, the runner, the manifest, the outbox and the messages are the pipeline's own. Each run is
a forked process with settings that were composed before, and asks neither git nor the hardware:
starting those would take most of the time. Nothing is sent to MLflow.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

# Imported here, once, and not in each forked process.
import psutil  # noqa: F401
import rich.console
import rich.rule
import rich.table  # noqa: F401

from pipeline.__main__ import main
from pipeline.config.schema import load
from pipeline.core import hardware
from pipeline.core.artifact import Outcome, read_manifest
from pipeline.core.paths import MANIFEST
from pipeline.core.stage import stage_module
from pipeline.orchestration import compose, runner
from pipeline.orchestration.graph import read_graph
from pipeline.tracking.outbox import Destination

SECONDS = 1.0  # of a slow stage
GRAPH = read_graph(compose.compose([]))


def replay(made: Path, slow: bool) -> Callable[..., Outcome]:
    manifest = read_manifest(made, "")
    files = sorted(p for p in made.rglob("*") if p.is_file() and p.name != MANIFEST)

    def run(config: Any, inputs: Any, out: Path) -> Outcome:
        scratch = out / ".scratch"
        scratch.mkdir(exist_ok=True)
        for file in files:
            target = out / file.relative_to(made)
            target.parent.mkdir(parents=True, exist_ok=True)
            (scratch / "checkpoint").write_text(file.name)
            with target.open("wb") as stream:
                stream.write(file.read_bytes()[:1000])
                if slow:
                    time.sleep(SECONDS / len(files))
                stream.write(file.read_bytes()[1000:])
        return Outcome(manifest.kind, manifest.metrics, manifest.proof, manifest.failure)

    return run


class Renames:
    """Counts os.rename and os.replace, and kills this process at one of them."""

    def __init__(self, at: int, after: bool) -> None:
        self.count, self._at, self._after = 0, at, after
        for name in ("rename", "replace"):
            setattr(os, name, self._wrapped(getattr(os, name)))

    def _wrapped(self, rename: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: Any, **options: Any) -> None:
            self.count += 1
            if self.count == self._at and not self._after:
                os.kill(os.getpid(), signal.SIGKILL)
            rename(*arguments, **options)
            if self.count == self._at:
                os.kill(os.getpid(), signal.SIGKILL)

        return call


def start(
    made: Path, how: str, tree: dict[str, Any], limit: Callable[[], None] | None = None
) -> tuple[int, int]:
    """Fork a process that runs the replayed stage; its pid and a pipe with what it says.

    tree: the composed settings. limit: called in the process before it begins.
    """
    said, output = os.pipe()
    pid = os.fork()
    if pid:
        os.close(output)
        return pid, said
    code = 1
    try:
        words = how.split()
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout, sys.stderr = (os.fdopen(n, "w", buffering=1) for n in (1, 2))
        renames = Renames(int(words[1]) if len(words) > 1 else 0, words[0] == "after")
        run = replay(made, words[0] == "slow")

        def module(name: str) -> SimpleNamespace:
            real = stage_module(name)
            found = SimpleNamespace(STAGE=real.STAGE, run=run)
            if hasattr(real, "components"):
                found.components = real.components
            return found

        runner.stage_module = module  # type: ignore[assignment]
        Destination.ensure_sender = lambda self: None  # type: ignore[method-assign]
        compose.load_command = lambda command: (made.name, tree, load(tree))  # type: ignore[assignment]
        runner._git_state = dict  # type: ignore[assignment]
        runner._package_digest = lambda: ""  # type: ignore[assignment]
        hardware.describe = dict  # type: ignore[assignment]
        hardware.installed_versions = lambda names: {}  # type: ignore[assignment]
        runner.read_graph = lambda tree: GRAPH  # type: ignore[assignment]
        if limit:
            limit()
        code = main([f"stage={made.name}"])
        if words[0] == "count":
            os.write(output, f"\n{renames.count}".encode())
    finally:
        os._exit(code)
