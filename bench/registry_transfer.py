"""Push and pull of a version beside `cp` of the same files to the same disk.

    python -m bench.registry_transfer bench/results/registry_transfer.json [--mib 512] [--s3 URL]

The version is one file of half the size and eight of the rest, of random bytes. Each figure is the
best of three, in MiB/s. Pushes go to an empty store. Without --s3, a server of moto runs in a
process of its own; it keeps everything in memory, in Python.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import boto3

from pipeline.core.artifact import Artifact
from pipeline.core.hardware import describe
from pipeline.deployment.store.blobs import Store
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


def best(work: Callable[[], object], before: Callable[[], object], mib: int) -> float:
    """MiB/s of the best round."""
    seconds = []
    for _ in range(ROUNDS):
        before()
        os.sync()
        begin = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begin)
    return round(mib / min(seconds), 1)


def measure(made: Artifact, store: Callable[[], Store], clear: Callable[[], object], folder: Path,
            mib: int) -> dict[str, float]:  # fmt: skip
    target = folder / "pulled"

    def pushing() -> None:
        with closing(store()) as there:
            push({"build": made}, there)

    def pulling() -> None:
        with closing(store()) as there:
            pull(there, bundle, "build", target)

    pushed = best(pushing, clear, mib)
    with closing(store()) as there:
        bundle = push({"build": made}, there)
    pulled = best(pulling, lambda: shutil.rmtree(target, ignore_errors=True), mib)
    shutil.rmtree(target)
    return {"push": pushed, "pull": pulled}


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
        server = subprocess.Popen([sys.executable, "-c", MOTO], stdout=subprocess.PIPE, text=True)
        assert server.stdout
        given.s3 = "http://{}:{}".format(*server.stdout.readline().split())
    os.environ["AWS_ENDPOINT_URL"] = given.s3
    bucket = boto3.resource("s3", region_name="us-east-1").create_bucket(Bucket="bench")
    with tempfile.TemporaryDirectory(dir=given.out.absolute().parent) as name:
        folder = Path(name)
        made = make(folder, given.mib)
        copy, kept = folder / "copy", folder / "store"
        found = {
            "cp": best(
                lambda: subprocess.run(["cp", "-r", made.path, copy], check=True),
                lambda: shutil.rmtree(copy, ignore_errors=True),
                given.mib,
            ),
            "sha256sum": best(
                lambda: subprocess.run(
                    ["sha256sum", *made.path.iterdir()], check=True, stdout=subprocess.DEVNULL
                ),
                lambda: None,
                given.mib,
            ),
            "folder": measure(
                made, lambda: Folder(kept), lambda: shutil.rmtree(kept, ignore_errors=True),
                folder, given.mib,
            ),
            "s3": measure(
                made, lambda: S3("bench/bank"), lambda: bucket.objects.all().delete(),
                folder, given.mib,
            ),
        }  # fmt: skip
    if server:
        server.kill()
    result = {"mib": given.mib, "mib_per_second": found, "machine": describe()}
    result["s3_server"] = "moto, in memory" if server else given.s3
    given.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
