"""Damages the artifacts of a chain in every way, and counts what the stages then say.

    python -m tests.artifact_damage artifacts --flips 20 -- tracking.enabled=false
    python -m tests.artifact_damage artifacts --parts opening --only merge export

Works on a copy of the folder, in four parts:

    opening       each kind of damage to each artifact, to each of its files where that makes a
                  difference; `open_artifact` opens it, as every stage does
    commands      `stage=verify` and each stage that reads an artifact, as command lines: each pair
                  for a few kinds of damage, and each kind for some pairs; they must say what
                  `open_artifact` says
    rot           a bit that changed while all times stayed, and command lines with verify=true
    permissions   a file that may not be read, and command lines

Everything must be refused: with exit code 4, in one line. Prints a line an artifact as it goes, and
the counts at the end; the exit code is 1 if anything was not refused. After each damage only what
differs is restored.
"""

import argparse
import contextlib
import ctypes
import functools
import itertools
import json
import os
import random
import shutil
import signal
import stat
import struct
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
from pipeline.core.console import one_line, printable
from pipeline.core.errors import ArtifactError
from pipeline.core.paths import MANIFEST
from pipeline.orchestration.graph import declared_stages, read_graph

SECONDS = 60  # for a stage to refuse; one that starts to work is stopped
CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 1 << 1, 1 << 2  # as linux/capability.h numbers them
LONGEST_LINE = 1000


@dataclass(frozen=True)
class Damage:
    """One damage: its kind, what it was done to, and the function that does it to an artifact."""

    kind: str
    what: str
    do: Callable[[Path], object]


PARTS = ("opening", "commands", "rot", "permissions")
COMMANDS = 3  # damages of other kinds that each reader of an artifact is run with


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
    elsewhere = Path(tempfile.gettempdir(), f"linked-{os.getpid()}")
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


def manifest_is_a_pipe(artifact: Path) -> None:
    (artifact / MANIFEST).unlink()
    os.mkfifo(artifact / MANIFEST)


def manifest_is_a_link(artifact: Path) -> None:
    link(artifact / MANIFEST, random.Random())


def manifest_without_end(artifact: Path) -> None:
    os.truncate(artifact / MANIFEST, 2**40)  # of which the disk holds no more than before


FOLDER_DAMAGES: dict[str, Callable[[Path], object]] = {
    "file added": lambda a: (a / "added.bin").write_bytes(b"x"),
    "file of two lines added": lambda a: (a / "added\nline\x1b[31m").write_bytes(b"x"),
    "file that is not UTF-8 added": lambda a: (a / os.fsdecode(b"added\xff")).write_bytes(b"x"),
    "hidden file added": lambda a: (a / ".added").write_bytes(b"x"),
    "temporary manifest added": lambda a: (a / "manifest.json.tmp").write_bytes(b""),
    "pickle added": lambda a: (a / "modelopt_state.pth").write_bytes(b"x"),
    "folder added": lambda a: (a / "added").mkdir(),
    "link added": lambda a: (a / "added").symlink_to("/etc/hostname"),
    "pipe added": lambda a: os.mkfifo(a / "added"),
    "manifest removed": no_manifest,
    "manifest is a folder": manifest_is_a_folder,
    "manifest is a pipe": manifest_is_a_pipe,
    "manifest is a link": manifest_is_a_link,
    "manifest without end": manifest_without_end,
    "artifact removed": shutil.rmtree,
    "file in place of the artifact": as_a_file,
}


SWAPS = (
    "swap two files", "swap a file with another artifact", "swap artifacts", "swap manifests"
)  # fmt: skip
KINDS = (*FILE_DAMAGES, *FOLDER_DAMAGES, *SWAPS, "manifest edited")


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
    """What damaged artifacts gave, and what of it was wrong.

    opened, commands: how often each kind of damage was opened, and met by a command line. said: by
    verdict. quiet: whether to print nothing meanwhile.
    """

    opened: Counter[str] = field(default_factory=Counter)
    commands: Counter[str] = field(default_factory=Counter)
    said: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    quiet: bool = False

    def add(self, damage: Damage, by: str, verdict: str, text: str = "") -> None:
        (self.opened if by == OPENED else self.commands)[damage.kind] += 1
        self.said[verdict] += 1
        if verdict != "refused":
            self.wrong.append(f"{verdict}: {damage.kind} ({damage.what}), {by}: {text[-300:]}")
            self.tell(self.wrong[-1])

    def tell(self, line: str) -> None:
        if not self.quiet:
            print(printable(line), flush=True)

    def __str__(self) -> str:
        others = [v for v in self.said if v not in ("refused", "traceback", "silent")]
        return (
            f"{self.opened.total():,} damaged artifacts opened, {self.commands.total():,} command "
            f"lines: {self.said['refused']:,} refused in a line, {self.said['traceback']} "
            f"tracebacks, {self.said['silent']} silent"
            + "".join(f", {self.said[verdict]} {verdict}" for verdict in others)
        )


class Part:
    """Prints what a part of the harness found of an artifact, at its end and every 10 seconds."""

    def __init__(self, counts: Counts, name: str, stage: str) -> None:
        self._counts, self._name = counts, f"{name:<11} {stage:<9}"
        self._before = counts.said.copy()
        self._began = self._told = time.monotonic()

    def step(self) -> None:
        if time.monotonic() - self._told > 10:
            self._tell(" …")

    def end(self) -> None:
        self._tell()

    def _tell(self, more: str = "") -> None:
        self._told = time.monotonic()
        said = {v: n - self._before[v] for v, n in self._counts.said.items() if n > self._before[v]}
        found = ", ".join(f"{n:,} {verdict}" for verdict, n in said.items())
        self._counts.tell(f"{self._name} {found} in {self._told - self._began:.1f} s{more}")


OPENED = "open_artifact"


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


def open_directly(artifact: Path, stage: str, *, reread: bool = False) -> tuple[str, str]:
    try:
        open_artifact(artifact, stage=stage, reread=reread)
    except ArtifactError as error:
        text = one_line(str(error))
        return judged(error.exit_code, text), text
    except Exception as error:
        return "traceback", repr(error)
    return "silent", ""


def without_rights() -> None:
    """Give up root's right to read what the permissions of a file forbid."""
    header = struct.pack("Ii", 0x20080522, 0)
    data = ctypes.create_string_buffer(24)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.capget(header, data):
        raise OSError(ctypes.get_errno(), "capget")
    kept = [word & ~(CAP_DAC_OVERRIDE | CAP_DAC_READ_SEARCH) for word in struct.unpack("6I", data)]
    if libc.capset(header, struct.pack("6I", *kept)):
        raise OSError(ctypes.get_errno(), "capset")


def run_apart(arguments: Sequence[str], *, bound: bool = False) -> tuple[int, str]:
    """Run a command of the pipeline in a process of its own; its exit code and its output.

    The code is negative if it did not end in SECONDS. bound: by permissions, even as root.
    """
    with tempfile.TemporaryFile() as output:
        child = os.fork()
        if child == 0:
            code = 70
            try:
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
                if bound:
                    without_rights()
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
        before = _state(artifact)
        damage.do(artifact)
        try:
            yield artifact
        finally:
            _restore(artifact, before, self.source / stage)
            open_artifact(artifact, stage=stage)


def _state(folder: Path) -> dict[Path, tuple[int, ...]]:
    """By path below a folder, what changes when a file is written, whoever sets its times back."""
    found: dict[Path, tuple[int, ...]] = {}
    for path in (folder, *folder.rglob("*")):
        status = path.lstat()
        found[path] = (status.st_mode,)
        if not stat.S_ISDIR(status.st_mode):
            found[path] += (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
    return found


def _restore(folder: Path, before: dict[Path, tuple[int, ...]], source: Path) -> None:
    """Copy from source what is not as it was, and remove what was not there."""
    now = _state(folder) if folder.is_dir() else {}
    if not now:
        folder.unlink(missing_ok=True)
    for path in sorted(now, reverse=True):  # what is in a folder comes before it
        if path not in before or stat.S_IFMT(now[path][0]) != stat.S_IFMT(before[path][0]):
            (path.rmdir if stat.S_ISDIR(now[path][0]) else path.unlink)()
    for path, status in sorted(before.items()):
        if now.get(path) == status:
            continue
        if stat.S_ISDIR(status[0]):
            path.mkdir(exist_ok=True)
        else:
            shutil.copy2(source / path.relative_to(folder), path)
        path.chmod(stat.S_IMODE(status[0]))


Readers = list[tuple[str, list[str]]]  # names of stages, and their command lines


def readers(chain: Chain, stage: str, settings: Sequence[str]) -> Readers:
    """What opens a stage's artifact."""
    names = [reader for reader, read in graph_inputs(settings).items() if stage in read]
    found = [(name, command(name, chain.place, settings)) for name in names]
    served = command("serve", chain.place, settings)
    if stage == "build":
        found.append(("serve", served))
    if stage == "index":
        found.append(("serve", [*served, f"serve.rag.indexes=[{chain.place / 'index'}]"]))
    return found


def try_opening(chain: Chain, counts: Counts, stage: str, flips: int) -> None:
    """Do every damage to an artifact, and open it directly."""
    part = Part(counts, "opening", stage)
    for damage in all_damages(chain, stage, flips):
        with chain.damaged(stage, damage) as artifact:
            counts.add(damage, OPENED, *open_directly(artifact, stage))
        part.step()
    part.end()


def all_damages(chain: Chain, stage: str, flips: int) -> Iterator[Damage]:
    others = [chain.source / other for other in chain.stages if other != stage]
    return damages(chain.source / stage, others, random.Random(stage), flips)


def try_commands(
    chain: Chain, counts: Counts, stage: str, settings: Sequence[str], kinds: "itertools.cycle[str]"
) -> None:
    """Run each reader of an artifact as a command line, each with the next few kinds of damage."""
    part = Part(counts, "commands", stage)
    by_kind: dict[str, list[Damage]] = {}
    for damage in all_damages(chain, stage, 1):
        by_kind.setdefault(damage.kind, []).append(damage)
    draw = random.Random(stage)
    for name, words in [*readers(chain, stage, settings), ("verify", [])]:
        for kind in itertools.islice((k for k in kinds if k in by_kind), COMMANDS):
            damage = draw.choice(by_kind[kind])
            with chain.damaged(stage, damage) as artifact:
                _, directly = open_directly(artifact, stage)
                if name == "verify":
                    if kind != "artifact removed":  # then a note beside those made from it
                        counts.add(damage, "stage=verify", *verified(chain, settings, directly))
                else:
                    code, text = run_apart(words)
                    verdict = judged(code, text)
                    if verdict == "refused" and printable(directly) not in text:
                        verdict = "another refusal than open_artifact's"
                    counts.add(damage, f"stage={name}", verdict, text)
            part.step()
    part.end()


def verified(chain: Chain, settings: Sequence[str], directly: str) -> tuple[str, str]:
    """What stage=verify says of a damaged artifact: its lines on each, and a refusal of one."""
    code, text = run_apart(command("verify", chain.place, settings))
    lines = [line for line in text.splitlines() if "pipeline: ArtifactError" in line]
    found = code == ArtifactError.exit_code and len(lines) == 1 and "Traceback" not in text
    return ("refused" if found and printable(directly) in text else judged(code, text)), text


def try_rot(chain: Chain, counts: Counts, stage: str, settings: Sequence[str]) -> None:
    """Flip a bit without a change of the file's times, as a disk may: only verify=true finds it."""
    part = Part(counts, "rot", stage)
    files = files_of(chain.source / stage)
    name = max(files, key=lambda file: file.stat().st_size).relative_to(chain.source / stage)
    damage = Damage("rot", name.as_posix(), lambda a: rot(a, name))
    with chain.damaged(stage, damage) as artifact:
        _, directly = open_directly(artifact, stage, reread=True)
        for reader, words in readers(chain, stage, settings):
            code, text = run_apart([*words, "verify=true"])
            counts.add(damage, f"stage={reader} verify=true", judged(code, text), text)
            part.step()
        counts.add(damage, "stage=verify", *verified(chain, settings, directly))
    part.end()


def rot(artifact: Path, name: Path) -> None:
    manifest = read_manifest(artifact, "")
    flip(artifact / name, random.Random(2))
    note_verified(artifact, manifest)


def try_permissions(chain: Chain, counts: Counts, stage: str, settings: Sequence[str]) -> None:
    """Take the right to read a file away, and read without the rights that root has."""
    part = Part(counts, "permissions", stage)
    name = files_of(chain.source / stage)[0].relative_to(chain.source / stage)
    damage = Damage("no permission", name.as_posix(), lambda a: (a / name).chmod(0))
    with chain.damaged(stage, damage):
        shutil.rmtree(chain.place / ".verified", ignore_errors=True)
        for reader, words in readers(chain, stage, settings):
            code, text = run_apart(words, bound=True)
            counts.add(damage, f"stage={reader}", judged(code, text), text)
            part.step()
    part.end()


def command(stage: str, artifacts: Path, settings: Sequence[str]) -> list[str]:
    port = ["serve.port=0"] if stage == "serve" else []
    return [f"stage={stage}", f"artifacts={artifacts}", *port, *settings]


@functools.cache
def _graph_inputs(settings: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    from pipeline.orchestration.compose import compose

    return {name: node.inputs for name, node in read_graph(compose(list(settings))).items()}


def graph_inputs(settings: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The input stages of each stage."""
    return _graph_inputs(tuple(settings))


def main(words: Sequence[str]) -> int:
    own, _, settings = " ".join(words).partition(" -- ")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("artifacts", type=Path)
    parser.add_argument("--flips", type=int, default=5, help="bits to flip in each file")
    parser.add_argument("--only", nargs="*", default=(), help="the artifacts to damage")
    parser.add_argument("--parts", nargs="*", default=PARTS, choices=PARTS)
    options, overrides = parser.parse_args(own.split()), settings.split()
    stages = [s for s in declared_stages() if (options.artifacts / s / MANIFEST).is_file()]
    counts = Counts()
    with tempfile.TemporaryDirectory() as copy:
        chain = Chain(options.artifacts, Path(copy), stages)
        kinds = itertools.cycle(KINDS)
        for stage in options.only or stages:
            if "opening" in options.parts:
                try_opening(chain, counts, stage, options.flips)
            if "commands" in options.parts:
                try_commands(chain, counts, stage, overrides, kinds)
            if "rot" in options.parts:
                try_rot(chain, counts, stage, overrides)
            if "permissions" in options.parts:
                try_permissions(chain, counts, stage, overrides)
    print(f"{'damage':<36} {'opened':>7} {'command lines':>14}")
    for kind in sorted(counts.opened | counts.commands):
        print(f"{kind:<36} {counts.opened[kind]:>7,} {counts.commands[kind]:>14,}")
    print(counts)
    return bool(counts.wrong)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
