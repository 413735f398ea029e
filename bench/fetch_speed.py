"""How fast a model arrives from a hub, beside a plain copy and a plain download of its file.

    python -m bench.fetch_speed [--mib 512] [--output bench/results/fetch_speed.json]

A local server speaks the hub's protocol, in a process of its own, and sends files by the kernel
alone. The copy is of a file that the memory holds already, and so the fastest that there can be;
the digest alone and a plain download by requests are the two parts of a fetch. Each has its wall
time and the CPU time of this process, which other programs on the machine disturb less. Use an
idle machine: server and client share its cores.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from bench.origin import ROOT, origin

REPEATS = 5


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--mib", type=int, default=512)
    parser.add_argument("--output", type=Path, default=ROOT / "bench/results/fetch_speed.json")
    given = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        source = root / "source"
        source.mkdir()
        (source / "config.json").write_text("{}")
        weights = source / "model.safetensors"
        weights.write_bytes(os.urandom(given.mib * 2**20))
        here, there = multiprocessing.Pipe()
        server = multiprocessing.Process(target=_serve, args=(source, there))
        server.start()
        try:
            url = here.recv()
            os.environ |= {"HF_ENDPOINT": url, "HF_HUB_DISABLE_XET": "1"}
            found = {
                "copy": _best(lambda: shutil.copyfile(weights, root / "copy")),
                "digest": _best(lambda: _digest(weights)),
                "download": _best(lambda: _download(url, root / "download")),
                "fetch": _best(lambda: _fetch(root)),
            }
        finally:
            here.send(None)
            server.join()
    shares = {
        f"of_{name}": {kind: round(found[name][kind] / found["fetch"][kind], 3)
                       for kind in ("seconds", "cpu_seconds")}
        for name in ("copy", "download")
    }  # fmt: skip
    result = {
        **origin("python -m bench.fetch_speed", ("huggingface-hub", "requests", "urllib3")),
        "MiB": given.mib,
        "load_average": {"before": round(load, 2), "after": round(os.getloadavg()[0], 2)},
        "best_of": REPEATS,
        **found,
        "speed_of_fetch": shares,
    }
    given.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    return 0


def _serve(source: Path, there: Connection) -> None:
    from tests.integration.hub_server import HubServer

    with HubServer() as hub:
        hub.add("bench/model", source)
        there.send(hub.url)
        there.recv()


def _best(work: Callable[[], Any]) -> dict[str, float]:
    """The shortest wall time and the least CPU time of this process, of a few runs."""
    seconds, cpu = [], []
    for _ in range(REPEATS):
        begin, used = time.perf_counter(), time.process_time()
        work()
        seconds.append(time.perf_counter() - begin)
        cpu.append(time.process_time() - used)
    return {"seconds": round(min(seconds), 3), "cpu_seconds": round(min(cpu), 3)}


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _download(url: str, into: Path) -> None:
    import requests

    with (
        requests.get(f"{url}/bench/model/resolve/main/model.safetensors", stream=True) as answer,
        into.open("wb") as stream,
    ):
        shutil.copyfileobj(answer.raw, stream, 2**20)


def _fetch(root: Path) -> None:
    from huggingface_hub import constants

    from pipeline.models.sources.address import Address, parse
    from pipeline.models.sources.hub import Hub

    shutil.rmtree(root / "cache", ignore_errors=True)
    constants.HF_HUB_CACHE = str(root / "cache")
    address = parse("hf://bench/model")
    assert isinstance(address, Address)
    hub = Hub(address)
    hub.get(hub.resolve(), ["model.safetensors"])


if __name__ == "__main__":
    sys.exit(main())
