"""How fast a model arrives from a hub, beside a plain copy of its file.

    python -m bench.fetch_speed [MIB]

A local server speaks the hub's protocol, in a process of its own. The copy is of a file that the
memory holds already, and so the fastest that there can be; a digest alone and a plain download by
requests show where the time goes. Use an idle machine: server and client share its cores.
"""

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

REPEATS = 3


def main(mib: int) -> int:
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        source = root / "source"
        source.mkdir()
        (source / "config.json").write_text("{}")
        weights = source / "model.safetensors"
        weights.write_bytes(os.urandom(mib * 2**20))
        here, there = multiprocessing.Pipe()
        server = multiprocessing.Process(target=_serve, args=(source, there))
        server.start()
        try:
            url = here.recv()
            os.environ |= {"HF_ENDPOINT": url, "HF_HUB_DISABLE_XET": "1"}
            found = {
                "MiB": mib,
                "copy_seconds": _best(lambda: shutil.copyfile(weights, root / "copy")),
                "digest_seconds": _best(lambda: _digest(weights)),
                "download_seconds": _best(lambda: _download(url, root / "download")),
                "fetch_seconds": _best(lambda: _fetch(root)),
            }
        finally:
            here.send(None)
            server.join()
    for name in ("copy", "download"):
        found[f"share_of_{name}"] = found[f"{name}_seconds"] / found["fetch_seconds"]
    print(json.dumps({name: round(value, 3) for name, value in found.items()}, indent=1))
    return 0


def _serve(source: Path, there: Connection) -> None:
    from tests.integration.hub_server import HubServer

    with HubServer() as hub:
        hub.add("bench/model", source)
        there.send(hub.url)
        there.recv()


def _best(work: Callable[[], Any]) -> float:
    """The shortest of a few runs, in seconds."""
    times = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return min(times)


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
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 512))
