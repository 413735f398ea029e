"""Damages the artifacts of a chain in every way, and counts what the stages then say.

    python -m tests.artifact_damage artifacts --flips 20 -- tracking.enabled=false

Works on a copy of the folder. Each kind of damage is done to each artifact, to each of its files
where that makes a difference; then `open_artifact` opens it, as every stage does, and the command
line runs each stage that reads it. Everything must be refused: with exit code 4, in one line.
"""

import argparse
import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.__main__ import main as pipeline
from pipeline.core.artifact import (
    note_verified,
    open_artifact,
    read_manifest,
    sha256_of_json,
)
from pipeline.core.errors import ArtifactError
from pipeline.core.paths import MANIFEST
from pipeline.orchestration.graph import declared_stages, read_graph

SECONDS = 60  # for a stage to refuse; one that starts to work is stopped
NOBODY = 65534
LONGEST_LINE = 1000


@dataclass(frozen=True)
class Damage:
    """One damage: its kind, what it was done to, and the function that does it to an artifact."""

    kind: str
    what: str
    do: Callable[[Path], object]


def files_of(artifact: Path) -> list[Path]:
    return sorted(p for p in artifact.rglob("*") if p.is_file() and p.name != MANIFEST)


def damages(
    artifact: Path, others: Sequence[Path], draw: random.Random, flips: int
) -> Iterator[Damage]:
    """Every damage to an artifact. others: artifacts beside it, to swap with."""
    for file in files_of(artifact):
        name = file.relative_to(artifact).as_posix()
        for kind, change in FILE_DAMAGES.items():
            if kind.startswith("flip") and not file.stat().st_size:
                continue
            for number in range(flips if kind == "flip" else 1):
                seed = draw.random()
                yield Damage(
                    kind,
                    f"{name} {number}",
                    lambda a, n=name, c=change, s=seed: c(a / n, random.Random(s)),
                )
    names = [f.relative_to(artifact).as_posix() for f in files_of(artifact)]
    for first, second in itertools.pairwise(names):
        if (artifact / first).read_bytes() != (artifact / second).read_bytes():
            yield Damage("swap two files", first, lambda a, x=first, y=second: swap(a / x, a / y))
    for other in others:
        theirs = files_of(other)
        if theirs and names and theirs[0].read_bytes() != (artifact / names[0]).read_bytes():
            yield Damage(
                "swap a file with another artifact",
                other.name,
                lambda a, o=theirs[0]: shutil.copyfile(o, a / names[0]),
            )
        yield Damage("swap artifacts", other.name, lambda a, o=other: replace(a, o))
        yield Damage(
            "swap manifests",
            other.name,
            lambda a, o=other: shutil.copyfile(o / MANIFEST, a / MANIFEST),
        )
    for kind, add in FOLDER_DAMAGES.items():
        yield Damage(kind, "", add)
    manifest = json.loads((artifact / MANIFEST).read_text())
    for kind, text in manifest_edits(manifest):
        yield Damage("manifest edited", kind, lambda a, t=text: (a / MANIFEST).write_bytes(t))


# ---- Damage to one file ----


def flip(file: Path, draw: random.Random) -> None:
    size = file.stat().st_size
    with file.open("r+b") as stream:
        stream.seek(place := draw.randrange(size))
        byte = stream.read(1)[0]
        stream.seek(place)
        stream.write(bytes([byte ^ 1 << draw.randrange(8)]))


def flip_unseen(file: Path, draw: random.Random) -> None:
    status = file.stat()
    flip(file, draw)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def cut(file: Path, draw: random.Random) -> None:
    size = file.stat().st_size
    if size:
        os.truncate(file, draw.randrange(size))
    else:
        file.write_bytes(b"x")


def lengthen(file: Path, draw: random.Random) -> None:
    with file.open("ab") as stream:
        stream.write(b"\0")


def remove(file: Path, draw: random.Random) -> None:
    file.unlink()


def rename(file: Path, draw: random.Random) -> None:
    file.rename(file.with_name(f"{file.name}.old"))


def link(file: Path, draw: random.Random) -> None:
    elsewhere = file.parents[len(file.parts) - 2] / tempfile.gettempdir() / f"linked-{os.getpid()}"
    shutil.copyfile(file, elsewhere)
    file.unlink()
    file.symlink_to(elsewhere)


def folder(file: Path, draw: random.Random) -> None:
    file.unlink()
    file.mkdir()


def pipe(file: Path, draw: random.Random) -> None:
    file.unlink()
    os.mkfifo(file)


FILE_DAMAGES: dict[str, Callable[[Path, random.Random], None]] = {
    "flip": flip,
    "flip, time set back": flip_unseen,
    "cut": cut,
    "lengthen": lengthen,
    "remove": remove,
    "rename": rename,
    "link in place of a file": link,
    "folder in place of a file": folder,
    "pipe in place of a file": pipe,
}


# ---- Damage to the folder ----


def swap(first: Path, second: Path) -> None:
    one, two = first.read_bytes(), second.read_bytes()
    first.write_bytes(two)
    second.write_bytes(one)


def replace(artifact: Path, other: Path) -> None:
    shutil.rmtree(artifact)
    shutil.copytree(other, artifact)


def no_manifest(artifact: Path) -> None:
    (artifact / MANIFEST).unlink()


def manifest_is_a_folder(artifact: Path) -> None:
    (artifact / MANIFEST).unlink()
    (artifact / MANIFEST).mkdir()


def as_a_file(artifact: Path) -> None:
    shutil.rmtree(artifact)
    artifact.write_text("")


FOLDER_DAMAGES: dict[str, Callable[[Path], object]] = {
    "file added": lambda a: (a / "added.bin").write_bytes(b"x"),
    "hidden file added": lambda a: (a / ".added").write_bytes(b"x"),
    "temporary manifest added": lambda a: (a / "manifest.json.tmp").write_bytes(b""),
    "pickle added": lambda a: (a / "modelopt_state.pth").write_bytes(b"x"),
    "folder added": lambda a: (a / "added").mkdir(),
    "link added": lambda a: (a / "added").symlink_to("/etc/hostname"),
    "pipe added": lambda a: os.mkfifo(a / "added"),
    "manifest removed": no_manifest,
    "manifest is a folder": manifest_is_a_folder,
    "artifact removed": shutil.rmtree,
    "file in place of the artifact": as_a_file,
}


# ---- Edits of the manifest ----


def manifest_edits(manifest: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    """Texts to write in place of a manifest, each with its name."""
    text = json.dumps(manifest, indent=1, sort_keys=True) + "\n"
    for cut_text in ("", "{", text[: len(text) // 2], text + "}"):
        yield f"cut to {len(cut_text)}", cut_text.encode()
    yield "not UTF-8", b"\xff" + text.encode()
    yield "nested", b"[" * 200_000
    yield "a list", b"[]"
    yield "another white space", text.replace(" ", "").encode()
    for name in sorted(manifest):
        first = f'"{name}": '
        yield f"{name} twice", text.replace(first, f"{first}null, {first}", 1).encode()
        for value in (None, 3, -1, 10**30, "x", "", [], {}, [1], {"a": 1}, True, 1e300):
            edited = {**manifest, name: value}
            if value == manifest[name] and type(value) is type(manifest[name]):
                continue
            yield f"{name} = {value!r}", dumps(edited)
            if name != "seal":  # a change of a type that the seal covers
                wrong_type = not isinstance(value, type(manifest[name]))
                if wrong_type and not (name == "failure" and value in ("x", "")):
                    yield f"{name} = {value!r}, sealed", sealed(edited)
        yield f"without {name}", dumps({k: v for k, v in manifest.items() if k != name})
    for number in ("NaN", "Infinity", "1e999", "9" * 5000):
        edited_text = text.replace('"seconds": ', f'"seconds": {number}, "x": ', 1)
        yield f"seconds = {number[:9]}", edited_text.encode()
    yield "another schema", dumps({**manifest, "schema": 1})
    yield "a field added", sealed({**manifest, "added": 1})
    entry = {"sha256": "0" * 64, "bytes": 1}
    for path in ("/etc/passwd", "../merge/config.json", "a/../b", "", ".", MANIFEST, "a\0b"):
        yield f"file {path!r}, sealed", sealed({**manifest, "files": {path: entry}})
    yield "no files, sealed", sealed({**manifest, "files": {}})
    for change in ({"bytes": -1}, {"bytes": "1"}, {"sha256": "0"}, {"sha256": 3}, {"more": 1}):
        files = {name: {**entry, **change} for name in manifest["files"]}
        yield f"files {change}, sealed", sealed({**manifest, "files": files})
    for place in ("../../x", "A" * 64, "0" * 63):
        yield f"fingerprint {place[:9]}, sealed", sealed({**manifest, "fingerprint": place})


def dumps(manifest: dict[str, Any]) -> bytes:
    return (json.dumps(manifest, indent=1, sort_keys=True) + "\n").encode()


def sealed(manifest: dict[str, Any]) -> bytes:
    content = {name: value for name, value in manifest.items() if name != "seal"}
    return dumps({**content, "seal": sha256_of_json(content)})


# ---- What is said ----


@dataclass
class Counts:
    """What opening damaged artifacts gave, and what of it was wrong."""

    done: Counter[str] = field(default_factory=Counter)
    said: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def add(self, damage: Damage, by: str, verdict: str, text: str = "") -> None:
        self.done[damage.kind] += 1
        self.said[verdict] += 1
        if verdict != "refused":
            self.wrong.append(f"{verdict}: {damage.kind} ({damage.what}), {by}: {text[-300:]}")


def judged(code: int, text: str) -> str:
    """What the output of a command that had to refuse amounts to. The server's log, lines of JSON,
    is no part of it."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("{")]
    if "Traceback" in text:
        return "traceback"
    if code == 0:
        return "silent"
    if code < 0:
        return "not refused in time"
    if len(lines) != 1 or len(lines[0]) > LONGEST_LINE:
        return "not one line"
    return "refused" if code == ArtifactError.exit_code else f"exit code {code}"


def open_directly(artifact: Path, stage: str) -> tuple[str, str]:
    try:
        open_artifact(artifact, stage=stage)
    except ArtifactError as error:
        text = str(error)
        return judged(error.exit_code, text), text
    except Exception as error:
        return "traceback", repr(error)
    return "silent", ""


def run_apart(arguments: Sequence[str], *, user: int | None = None) -> tuple[int, str]:
    """Run a command of the pipeline in a process of its own; its exit code and its output.

    The code is negative if it did not end in SECONDS. user: whose rights it has.
    """
    with tempfile.TemporaryFile() as output:
        child = os.fork()
        if child == 0:
            code = 70
            try:
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
                if user is not None:
                    os.setgroups([])
                    os.setgid(user)
                    os.setuid(user)
                code = pipeline(list(arguments))
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                os._exit(code)
        deadline = time.monotonic() + SECONDS
        while True:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended or time.monotonic() > deadline:
                break
            time.sleep(0.005)
        if not ended:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            status = -1
        output.seek(0)
        text = output.read().decode(errors="replace")
        return (-1 if status == -1 else os.waitstatus_to_exitcode(status)), text


def readers(stage: str, inputs: dict[str, tuple[str, ...]]) -> list[str]:
    """The stages that open a stage's artifact."""
    served = ["serve"] if stage == "build" else []
    return [reader for reader, read in inputs.items() if stage in read] + served


class Chain:
    """A copy of a folder of artifacts, in which one is damaged at a time."""

    def __init__(self, source: Path, copy: Path, stages: Sequence[str]) -> None:
        self.source, self.place, self.stages = source, copy, stages
        for stage in stages:
            shutil.copytree(source / stage, copy / stage)
            open_artifact(copy / stage)

    @contextlib.contextmanager
    def damaged(self, stage: str, damage: Damage) -> Iterator[Path]:
        artifact = self.place / stage
        damage.do(artifact)
        try:
            yield artifact
        finally:
            if artifact.is_dir():
                shutil.rmtree(artifact)
            else:
                artifact.unlink(missing_ok=True)
            shutil.copytree(self.source / stage, artifact)
            open_artifact(artifact, stage=stage)


def try_all(
    chain: Chain,
    counts: Counts,
    inputs: dict[str, tuple[str, ...]],
    *,
    flips: int,
    settings: Sequence[str],
    damaged: Sequence[str] = (),
) -> None:
    """Do every damage to every artifact: open each directly, and one of each kind by commands.

    inputs: the stages that each stage reads; no commands are run without. damaged: the artifacts to
    damage; all if there are none.
    """
    draw = random.Random(1)
    for stage in damaged or chain.stages:
        others = [chain.source / other for other in chain.stages if other != stage]
        tried: set[str] = set()
        for damage in damages(chain.source / stage, others, draw, flips):
            with chain.damaged(stage, damage) as artifact:
                counts.add(damage, "open_artifact", *open_directly(artifact, stage))
                if damage.kind in tried or not inputs:
                    continue
                tried.add(damage.kind)
                for reader in readers(stage, inputs):
                    code, text = run_apart(command(reader, chain.place, settings))
                    counts.add(damage, f"stage={reader}", judged(code, text), text)
                code, text = run_apart(command("verify", chain.place, settings))
                lines = [line for line in text.splitlines() if "pipeline: ArtifactError" in line]
                found = code == ArtifactError.exit_code and len(lines) == 1
                if damage.kind == "artifact removed":
                    continue  # a note beside the artifacts that were made from it
                verdict = "refused" if found and "Traceback" not in text else judged(code, text)
                counts.add(damage, "stage=verify", verdict, text)


def try_rot(
    chain: Chain,
    counts: Counts,
    inputs: dict[str, tuple[str, ...]],
    settings: Sequence[str],
    damaged: Sequence[str],
) -> None:
    """Flip a bit without a change of the file's times, as a disk may: only verify=true finds it."""
    for stage in damaged:
        files = files_of(chain.source / stage)
        name = max(files, key=lambda file: file.stat().st_size).relative_to(chain.source / stage)
        damage = Damage("rot", name.as_posix(), lambda a, n=name: rot(a, n))
        with chain.damaged(stage, damage):
            for reader in [*readers(stage, inputs), "verify"]:
                more = () if reader == "verify" else ("verify=true",)
                code, text = run_apart(command(reader, chain.place, [*settings, *more]))
                last = "\n".join(text.strip().splitlines()[-1:]) if reader == "verify" else text
                counts.add(damage, f"stage={reader} {' '.join(more)}", judged(code, last), text)


def rot(artifact: Path, name: Path) -> None:
    manifest = read_manifest(artifact, "")
    flip(artifact / name, random.Random(2))
    note_verified(artifact, manifest)


def try_permissions(
    chain: Chain,
    counts: Counts,
    inputs: dict[str, tuple[str, ...]],
    settings: Sequence[str],
    damaged: Sequence[str],
) -> None:
    """Take the right to read a file away, and read as a user that has no other rights."""
    for path in [chain.place, *chain.place.rglob("*")]:
        path.chmod(0o777)
    for stage in damaged:
        name = files_of(chain.source / stage)[0].relative_to(chain.source / stage)
        damage = Damage("no permission", name.as_posix(), lambda a, n=name: (a / n).chmod(0))
        with chain.damaged(stage, damage):
            shutil.rmtree(chain.place / ".verified", ignore_errors=True)
            for reader in readers(stage, inputs):
                code, text = run_apart(command(reader, chain.place, settings), user=NOBODY)
                counts.add(damage, f"stage={reader}", judged(code, text), text)
        for path in (chain.place / stage).rglob("*"):
            path.chmod(0o777)


def command(stage: str, artifacts: Path, settings: Sequence[str]) -> list[str]:
    port = ["serve.port=0"] if stage == "serve" else []
    return [f"stage={stage}", f"artifacts={artifacts}", *port, *settings]


def graph_inputs(settings: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The input stages of each stage."""
    from pipeline.orchestration.compose import compose

    graph = read_graph(compose(list(settings)))
    return {name: node.inputs for name, node in graph.items()}


def main(words: Sequence[str]) -> int:
    own, _, settings = " ".join(words).partition(" -- ")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("artifacts", type=Path)
    parser.add_argument("--flips", type=int, default=5, help="bits to flip in each file")
    parser.add_argument("--only", nargs="*", default=(), help="the artifacts to damage")
    options, overrides = parser.parse_args(own.split()), settings.split()
    stages = [s for s in declared_stages() if (options.artifacts / s / MANIFEST).is_file()]
    inputs, counts = graph_inputs(overrides), Counts()
    with tempfile.TemporaryDirectory() as copy:
        Path(copy).chmod(0o777)
        chain = Chain(options.artifacts, Path(copy), stages)
        only = options.only or stages
        try_all(chain, counts, inputs, flips=options.flips, settings=overrides, damaged=only)
        try_rot(chain, counts, inputs, overrides, only)
        if os.getuid() == 0:
            try_permissions(chain, counts, inputs, overrides, only)
    print(
        json.dumps(
            {"artifacts": len(stages), "by_kind": counts.done, "said": counts.said}, indent=1
        )
    )
    for line in counts.wrong:
        print(line, file=sys.stderr)
    return bool(counts.wrong)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
