"""Push and pull of a version beside `cp` of the same files to the same disk.

    python -m bench.registry_transfer bench/results/registry_transfer.json [--mib 512] [--s3 URL]

The version is one file of half the size and eight of the rest, of random bytes. Each figure is the
best of three, in MiB/s, until the files are on the disk (fsync); cp_cached is cp without that, a
copy in memory. The rounds of all of them take turns. Pushes go to an empty store. Without --s3, a
server of moto runs in a process of its own, in Python.
"""

import argparse
import http.client
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import boto3

from pipeline.core.artifact import Artifact
from pipeline.core.hardware import describe
from pipeline.deployment.store.blobs import Bundle, Store
from pipeline.deployment.store.folder import Folder
from pipeline.deployment.store.s3 import S3
from pipeline.deployment.store.transfer import pull, push
from tests.made_artifacts import make_artifact

ROUNDS = 3
MIB = 2**20
MOTO = (
    "from moto.server import ThreadedMotoServer as S; import time; s = S('127.0.0.1', 0, False); "
    "s.start(); print(*s.get_host_and_port(), flush=True); time.sleep(10**6)"
)


def make(folder: Path, mib: int) -> Artifact:
    """An artifact of so many MiB of random bytes."""
    sizes = [mib // 2, *[mib // 16] * 8]
    files = {f"model-{number}.safetensors": os.urandom(n * MIB) for number, n in enumerate(sizes)}
    return make_artifact(folder, "build", "engine", files=files)


@dataclass(frozen=True)
class Case:
    """work: what is timed. before: makes room for it. made: folder whose files must be on the disk;
    None: they are elsewhere, or nothing is made."""

    work: Callable[[], object]
    before: Callable[[], object]
    made: Path | None = None


def measure(cases: Mapping[str, Case], mib: int) -> dict[str, float]:
    """MiB/s of the best round of each, by name."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(ROUNDS):
        for name, case in cases.items():
            case.before()
            begin = time.perf_counter()
            case.work()
            for file in case.made.rglob("*") if case.made else ():
                if file.is_file():
                    with file.open("rb") as stream:
                        os.fsync(stream.fileno())
            seconds[name].append(time.perf_counter() - begin)
    return {name: round(mib / min(found), 1) for name, found in seconds.items()}


def transfers(
    name: str,
    made: Artifact,
    store: Callable[[], Store],
    clear: Callable[[], object],
    kept: Path | None,
    target: Path,
) -> dict[str, Case]:
    """Push to an empty store, then pull what was pushed. kept: the store's folder, if any."""

    def pushing() -> Bundle:
        with closing(store()) as there:
            return push({"build": made}, there)

    def pulling() -> None:
        with closing(store()) as there:
            pull(there, bundle, "build", target)

    bundle = pushing()
    return {
        f"{name} push": Case(pushing, clear, kept),
        f"{name} pull": Case(pulling, lambda: shutil.rmtree(target, ignore_errors=True), target),
    }


def alone(address: str, file: Path, mib: int) -> dict[str, Case]:
    """The server with a client that does nothing but send and receive: what it can do at most."""
    content = file.read_bytes()
    rounds = mib * MIB // len(content)
    client, host = boto3.client("s3"), address.split("//")[1]

    def ask(method: str, number: int) -> None:
        url = client.generate_presigned_url(
            f"{method.lower()}_object", {"Bucket": "bench", "Key": f"alone/{number}"}
        )
        link = http.client.HTTPConnection(host)
        link.request(method, url.partition(host)[2], content if method == "PUT" else None)
        answer = link.getresponse()
        assert answer.status == 200, answer.read()
        while answer.read(MIB):
            pass
        link.close()

    def all_of(method: str) -> None:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda number: ask(method, number), range(rounds)))

    return {
        "s3_put_alone": Case(lambda: all_of("PUT"), lambda: None),
        "s3_get_alone": Case(lambda: all_of("GET"), lambda: None),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--mib", type=int, default=512)
    parser.add_argument("--s3", help="address of a server that speaks S3's protocol")
    given = parser.parse_args()
    server = None
    os.environ.setdefault("AWS_ACCESS_KEY_ID", "id")
    os.environ.setdefault("AWS_SECRET_ACCESS_KEY", "key")
    os.environ.setdefault("AWS_REGION", "us-east-1")
    if not given.s3:
        memory = {"MOTO_S3_DEFAULT_KEY_BUFFER_SIZE": str(2**40)}  # else it writes large files
        server = subprocess.Popen(
            [sys.executable, "-c", MOTO], stdout=subprocess.PIPE, text=True,
            env={**os.environ, **memory},
        )  # fmt: skip
        assert server.stdout
        given.s3 = "http://{}:{}".format(*server.stdout.readline().split())
    os.environ["AWS_ENDPOINT_URL"] = given.s3
    bucket = boto3.resource("s3", region_name="us-east-1").create_bucket(Bucket="bench")
    with tempfile.TemporaryDirectory(dir=given.out.absolute().parent) as name:
        folder = Path(name)
        made = make(folder, given.mib)
        copy, kept = folder / "copy", folder / "store"
        files = [file for file in made.path.iterdir() if file.is_file()]

        def copying() -> None:
            subprocess.run(["cp", "-r", made.path, copy], check=True)

        def hashing() -> None:
            subprocess.run(["sha256sum", *files], check=True, stdout=subprocess.DEVNULL)

        def uncopy() -> None:
            shutil.rmtree(copy, ignore_errors=True)

        cases = {
            "cp": Case(copying, uncopy, copy),
            "cp_cached": Case(copying, uncopy),
            "sha256sum": Case(hashing, lambda: None),
            **transfers(
                "folder", made, lambda: Folder(kept),
                lambda: shutil.rmtree(kept, ignore_errors=True), kept, folder / "pulled",
            ),
            **transfers(
                "s3", made, lambda: S3("bench/bank"), lambda: bucket.objects.all().delete(), None,
                folder / "pulled",
            ),
            **alone(given.s3, made.path / "model-1.safetensors", given.mib),
        }  # fmt: skip
        found = measure(cases, given.mib)
    if server:
        server.kill()
    shares = {name: round(found[name] / found["cp"], 2) for name in found if " " in name}
    result = {"mib": given.mib, "mib_per_second": found, "of_cp": shares, "machine": describe()}
    result["s3_server"] = "moto, in memory" if server else given.s3
    given.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
