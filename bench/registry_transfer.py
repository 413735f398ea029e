"""Push and pull of a version beside `cp` of the same files to the same disk, and beside boto3's own
upload_file and download_file of the same files with the same server.

    python -m bench.registry_transfer --output bench/results/registry_transfer.json [--mib 512]
    python -m bench.registry_transfer --output FILE --s3 http://127.0.0.1:4568 \\
        --s3-server "s3rver 3.7.1" --s3-folder /data/s3rver

The version is one file of half the size and eight of the rest, of random bytes. Each figure is the
best of the rounds, in MiB/s, until the files are on the disk (fsync); cp_cached is cp without that,
a copy in memory. The rounds of all of them take turns. Pushes go to an empty store. Without --s3, a
server of moto runs in a process of its own, in Python, which keeps everything in memory. boto3's
functions take one file after another, with up to ten parts of it at once.
"""

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

from bench.origin import origin, parser_of
from pipeline.core.artifact import Artifact
from pipeline.deployment.store.blobs import Bundle, Store
from pipeline.deployment.store.folder import Folder
from pipeline.deployment.store.s3 import S3
from pipeline.deployment.store.transfer import pull, push
from tests.made_artifacts import make_artifact

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


def measure(cases: Mapping[str, Case], mib: int, rounds: int) -> dict[str, list[float]]:
    """MiB/s of each round, by name."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, case in cases.items():
            case.before()
            begin = time.perf_counter()
            case.work()
            for file in case.made.rglob("*") if case.made else ():
                if file.is_file():
                    with file.open("rb") as stream:
                        os.fsync(stream.fileno())
            seconds[name].append(time.perf_counter() - begin)
    return {name: [round(mib / each, 1) for each in found] for name, found in seconds.items()}


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


def boto3_alone(
    files: list[Path], target: Path, clear: Callable[[], object], kept: Path | None
) -> dict[str, Case]:
    """boto3's own functions, of the same files, with the same server."""
    client = boto3.client("s3")

    def upload() -> None:
        for file in files:
            client.upload_file(str(file), "bench", f"boto3/{file.name}")

    def download() -> None:
        target.mkdir()
        for file in files:
            client.download_file("bench", f"boto3/{file.name}", str(target / file.name))

    def unload() -> None:
        shutil.rmtree(target, ignore_errors=True)

    return {
        "s3 upload_file": Case(upload, clear, kept),
        "s3 download_file": Case(download, unload, target),
    }


def alone(address: str, file: Path, mib: int, kept: Path | None) -> dict[str, Case]:
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
        "s3_put_alone": Case(lambda: all_of("PUT"), lambda: None, kept),
        "s3_get_alone": Case(lambda: all_of("GET"), lambda: None),
    }


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--mib", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--s3", help="address of a server that speaks S3's protocol")
    parser.add_argument("--s3-server", help="its name and version")
    parser.add_argument("--s3-folder", type=Path, help="where it keeps its files, on this disk")
    given = parser.parse_args()
    server = None
    os.environ.setdefault("AWS_ACCESS_KEY_ID", "id")
    os.environ.setdefault("AWS_SECRET_ACCESS_KEY", "key")
    os.environ.setdefault("AWS_REGION", "us-east-1")
    if not given.s3:
        memory = {"MOTO_S3_DEFAULT_KEY_BUFFER_SIZE": str(2**40)}  # else it writes large files
        server = subprocess.Popen(
            [sys.executable, "-c", MOTO], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True, env={**os.environ, **memory},
        )  # fmt: skip
        assert server.stdout
        given.s3 = "http://{}:{}".format(*server.stdout.readline().split())
    os.environ["AWS_ENDPOINT_URL"] = given.s3
    bucket = boto3.resource("s3", region_name="us-east-1").create_bucket(Bucket="bench")
    with tempfile.TemporaryDirectory(dir=given.output.absolute().parent) as name:
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

        def empty() -> None:
            bucket.objects.all().delete()

        cases = {
            "cp": Case(copying, uncopy, copy),
            "cp_cached": Case(copying, uncopy),
            "sha256sum": Case(hashing, lambda: None),
            **transfers(
                "folder", made, lambda: Folder(kept),
                lambda: shutil.rmtree(kept, ignore_errors=True), kept, folder / "pulled",
            ),
            **boto3_alone(files, folder / "downloaded", empty, given.s3_folder),
            **transfers(
                "s3", made, lambda: S3("bench/bank"), empty, given.s3_folder, folder / "pulled",
            ),
            **alone(given.s3, made.path / "model-1.safetensors", given.mib, given.s3_folder),
        }  # fmt: skip
        rounds = measure(cases, given.mib, given.rounds)
    if server:
        server.kill()
    found = {name: max(each) for name, each in rounds.items()}
    shares = {name: round(found[name] / found["cp"], 2) for name in found if " " in name}
    command = f"python -m bench.registry_transfer --mib {given.mib} --rounds {given.rounds}"
    packages = ("boto3", "botocore", "urllib3", "moto", "werkzeug")
    result = {
        **origin(command, packages, given.commit),
        "s3_server": "moto, in memory" if server else given.s3_server,
        "mib": given.mib,
        "mib_per_second": found,
        "of_cp": shares,
        "of_boto3": {
            "push": round(found["s3 push"] / found["s3 upload_file"], 2),
            "pull": round(found["s3 pull"] / found["s3 download_file"], 2),
        },
        "rounds": rounds,
    }
    given.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({"mib_per_second": found, "of_cp": shares}, indent=1))


if __name__ == "__main__":
    main()
