"""How fast a model arrives from a hub and from S3, beside a copy and plain downloads of its file.

    python -m bench.fetch_speed [--mib 512] [--output bench/results/fetch_speed.json]

A local server speaks the hub's protocol, in a process of its own, and sends files by the kernel
alone; moto's server speaks S3's, in another. The copy is of a file that the memory holds already,
and so the fastest that there can be. Plain downloads, by curl, requests and boto3, compute no
digest; a fetch does. Each has its wall time and the CPU time of this process and its children,
which other programs on the machine disturb less. Use an idle machine: servers and client share
its cores.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from bench.origin import ROOT, origin

REPEATS = 5
S3 = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "key", "AWS_REGION": "us-east-1",
      "AWS_DEFAULT_REGION": "us-east-1", "NO_PROXY": "127.0.0.1"}  # fmt: skip


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
        found = {
            "copy": _best(lambda: shutil.copyfile(weights, root / "copy")),
            "digest": _best(lambda: _digest(weights)),
        }
        with _serving(_serve, source) as url:
            os.environ |= {"HF_ENDPOINT": url, "HF_HUB_DISABLE_XET": "1"}
            found |= {
                "curl": _best(lambda: _curl(url, root / "download")),
                "download": _best(lambda: _download(url, root / "download")),
                "fetch": _best(lambda: _fetch(root)),
            }
        with _serving(_serve_s3, source) as url:
            os.environ |= {**S3, "AWS_ENDPOINT_URL": url, "XDG_CACHE_HOME": str(root / "cache")}
            found |= {
                "s3_download": _best(lambda: _download_s3(root / "download")),
                "s3_fetch": _best(lambda: _fetch_s3(root)),
            }
    shares = {
        f"{fetch}_of_{plain}": {kind: round(found[plain][kind] / found[fetch][kind], 3)
                                for kind in ("seconds", "cpu_seconds")}
        for fetch, plain in (("fetch", "copy"), ("fetch", "curl"), ("fetch", "download"),
                             ("s3_fetch", "s3_download"))
    }  # fmt: skip
    result = {
        **origin(
            "python -m bench.fetch_speed",
            ("huggingface-hub", "requests", "urllib3", "boto3", "moto"),
        ),
        "MiB": given.mib,
        "load_average": {"before": round(load, 2), "after": round(os.getloadavg()[0], 2)},
        "best_of": REPEATS,
        **found,
        "speed": shares,
    }
    given.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    return 0


@contextmanager
def _serving(serve: Callable[[Path, Connection], None], source: Path) -> Iterator[str]:
    """The address of a server in a process of its own."""
    here, there = multiprocessing.Pipe()
    server = multiprocessing.Process(target=serve, args=(source, there))
    server.start()
    try:
        yield here.recv()
    finally:
        here.send(None)
        server.join()


def _serve_s3(source: Path, there: Connection) -> None:
    import boto3
    from moto.server import ThreadedMotoServer

    moto = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    os.environ |= {**S3, "AWS_ENDPOINT_URL": f"http://{host}:{port}"}
    bucket = boto3.resource("s3").create_bucket(Bucket="bench")
    for file in source.iterdir():
        bucket.upload_file(str(file), f"model/{file.name}")
    there.send(f"http://{host}:{port}")
    there.recv()
    moto.stop()


def _serve(source: Path, there: Connection) -> None:
    from tests.integration.hub_server import HubServer

    with HubServer() as hub:
        hub.add("bench/model", source)
        there.send(hub.url)
        there.recv()


def _best(work: Callable[[], Any]) -> dict[str, float]:
    """The shortest wall time and the least CPU time of this process and what it started, of a few
    runs."""
    seconds, cpu = [], []
    for _ in range(REPEATS):
        begin, used = time.perf_counter(), _cpu()
        work()
        seconds.append(time.perf_counter() - begin)
        cpu.append(_cpu() - used)
    return {"seconds": round(min(seconds), 3), "cpu_seconds": round(min(cpu), 3)}


def _cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _curl(url: str, into: Path) -> None:
    page = f"{url}/bench/model/resolve/main/model.safetensors"
    subprocess.run(["curl", "--silent", "--fail", "--output", into, page], check=True)


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


def _download_s3(into: Path) -> None:
    import boto3

    body = boto3.client("s3").get_object(Bucket="bench", Key="model/model.safetensors")["Body"]
    with into.open("wb") as stream:
        shutil.copyfileobj(body, stream, 2**20)


def _fetch_s3(root: Path) -> None:
    from pipeline.models.sources.address import Address, parse
    from pipeline.models.sources.objects import Objects

    shutil.rmtree(root / "cache", ignore_errors=True)
    address = parse("s3://bench/model")
    assert isinstance(address, Address)
    objects = Objects(address)
    objects.get(objects.resolve(), ["model.safetensors"])


if __name__ == "__main__":
    sys.exit(main())
