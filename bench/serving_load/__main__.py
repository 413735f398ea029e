"""Stress tests of the server: many connections, clients that disconnect, a shutdown, a crash.

    python -m bench.serving_load flood     # 200 connections for 5 minutes
    python -m bench.serving_load hangups   # 1,000 clients that disconnect during a response
    python -m bench.serving_load drain     # SIGTERM while 50 streams are open
    python -m bench.serving_load crash     # the engine's process is killed under load

Each starts its own server on a free port of this machine, exits with 1 if its requirement is not
met, and writes bench/results/serving_<name>.json.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from bench.origin import ROOT, origin
from bench.serving_load.client import MODEL
from bench.serving_load.crash import crash
from bench.serving_load.drain import drain
from bench.serving_load.flood import flood
from bench.serving_load.hangups import hangups
from pipeline.serving.server_process import RunningServer, running_server

Run = Callable[[RunningServer, argparse.Namespace], Coroutine[Any, Any, dict[str, Any]]]
RUNS: dict[str, Run] = {run.__name__: run for run in (flood, hangups, drain, crash)}
PACKAGES = ("onnxruntime", "uvicorn", "uvloop", "httptools", "fastapi", "starlette", "aiohttp")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.serving_load", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("run", choices=list(RUNS))
    parser.add_argument("--engine", type=Path, default=ROOT / "artifacts/build")
    parser.add_argument("--seconds", type=float, default=300, help="of flood")
    parser.add_argument("--connections", type=int, default=200, help="of flood and crash")
    parser.add_argument("--clients", type=int, default=1000, help="of hangups")
    parser.add_argument("--streams", type=int, default=50, help="of drain")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    output = given.output or ROOT / f"bench/results/serving_{given.run}.json"
    load_before = [round(load, 2) for load in os.getloadavg()]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "server.log"
        with running_server(given.engine, model=MODEL, log=log) as server:
            found = asyncio.run(RUNS[given.run](server, given))
        lines = [json.loads(line) for line in log.read_text().splitlines() if line[:1] == "{"]
    warnings = [line for line in lines if line["level"] != "info"]
    result = {
        **origin(" ".join(["python -m bench.serving_load", *sys.argv[1:]]), PACKAGES),
        "load_before": load_before,
        "warnings_in_the_log": len(warnings),
        "first_warnings": warnings[:3],
        **found,
    }
    output.write_text(json.dumps(result, indent=1) + "\n")
    shown = {name: value for name, value in result.items() if name != "memory_mib"}
    print(json.dumps(shown, indent=1))
    return 0 if found["met"] else 1


if __name__ == "__main__":
    sys.exit(main())
