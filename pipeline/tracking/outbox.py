"""The folder in which stage runs wait on their way to the tracker; both of its ends read this file.

    <artifacts>/.tracking/<destination>/
        spool/<run>.jsonl    one stage run: start, metrics …, finish; a line an event
        spool/<run>.files/   its manifest and small reports, as they were when it ended
        spool/<group>.group  the pipeline run that stage runs belong to, and the process it lives in
        registered.json      what the registry answered last
        rejected/            what MLflow refuses; the reason is in sender.log
        trouble.txt          why sending failed last
        sender.lock          held by the one process that sends

Each destination has a folder of its own, so that a server that is away holds up no other; its
password stays in the environment. Knows nothing of MLflow's client.
"""

import fcntl
import getpass
import hashlib
import json
import os
import re
import secrets
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pipeline.config.tracking import TrackingConfig
from pipeline.core.artifact import main_folder

SENDER = "pipeline.tracking.sender_process"
OWNER_VARIABLE = "PIPELINE_RUN"  # "pid:start time" of the process that a pipeline run lives in
_URL_PASSWORD = re.compile(r"(\w://[^/\s:@]*):[^/\s@]+@")


@dataclass(frozen=True)
class Owner:
    """A process, told apart from a later one of the same number by its start time."""

    pid: int
    started: float  # seconds since 1970

    @classmethod
    def this(cls) -> "Owner":
        import psutil

        return cls(os.getpid(), psutil.Process().create_time())

    @classmethod
    def of_group(cls) -> "Owner":
        """The process whose life is the pipeline run: what PIPELINE_RUN names, else the nearest
        ancestor that is DVC, else this one."""
        import psutil

        pid, _, started = os.environ.get(OWNER_VARIABLE, "").partition(":")
        if pid and started:
            return cls(int(pid), float(started))
        for process in psutil.Process().parents():
            try:
                if "dvc" in [Path(word).name for word in process.cmdline()[:3]]:
                    return cls(process.pid, process.create_time())
            except psutil.Error:
                continue
        return cls.this()

    def is_alive(self) -> bool:
        import psutil

        try:
            process = psutil.Process(self.pid)
            running = process.status() != psutil.STATUS_ZOMBIE
            return running and self.is_same(Owner(self.pid, process.create_time()))
        except psutil.Error:
            return False

    def is_same(self, other: "Owner") -> bool:
        """Start times are told relative to the boot, which moves when the clock is set."""
        return self.pid == other.pid and abs(self.started - other.started) < 5


@dataclass(frozen=True)
class Group:
    """A pipeline run: the stage runs of one `stage=all`, `dvc repro` or lone stage.

    created: seconds since 1970. stages: names of those that took part so far.
    """

    id: str
    owner: Owner
    created: float
    experiment: str
    user: str
    stages: tuple[str, ...] = ()
    ended: bool = False

    @classmethod
    def of(cls, raw: dict[str, Any]) -> "Group":
        return cls(**{**raw, "owner": Owner(**raw["owner"]), "stages": tuple(raw["stages"])})

    @property
    def name(self) -> str:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.created))

    def is_open(self) -> bool:
        return not self.ended and self.owner.is_alive()

    def write(self, spool: Path) -> None:
        temporary = spool / f"{self.id}.tmp"
        temporary.write_text(json.dumps(asdict(self)))
        temporary.replace(spool / f"{self.id}.group")


def embedded_store(artifacts: Path) -> Path:
    """The file of the SQLite store that is used where no server is named. The runs of a sweep are
    tracked in the project's store, where they are compared with the others."""
    return main_folder(artifacts) / "mlflow" / "mlflow.db"


@dataclass(frozen=True)
class Destination:
    """A tracking store. uri may hold a password; artifact_root None: the server decides."""

    uri: str
    folder: Path
    artifact_root: Path | None

    @classmethod
    def of(cls, artifacts: Path, config: TrackingConfig | None = None) -> "Destination":
        """MLFLOW_TRACKING_URI, else the configured URI, else a SQLite store below `artifacts`."""
        artifacts = main_folder(artifacts.absolute())
        embedded = f"sqlite:///{embedded_store(artifacts)}"
        uri = os.environ.get("MLFLOW_TRACKING_URI") or (config and config.uri) or embedded
        waiting = artifacts / ".tracking"
        if uri == embedded:
            return cls(embedded, waiting / "embedded", artifacts / "mlflow" / "files")
        parts = urlsplit(uri)
        digest = hashlib.sha256(mask(uri).encode()).hexdigest()[:8]
        name = re.sub(r"[^\w.-]+", "-", f"{parts.scheme}-{parts.hostname or ''}-{digest}")
        return cls(uri, waiting / name, None)

    @property
    def artifacts(self) -> Path:
        return self.folder.parent.parent

    @property
    def base(self) -> Path:
        """The folder that paths in events, and in an embedded store, are relative to."""
        return self.artifacts.parent

    def relative(self, path: Path) -> str:
        """A path as events say it: relative where that is possible, so that a project can move."""
        path = path.absolute()
        return str(path.relative_to(self.base) if path.is_relative_to(self.base) else path)

    @property
    def spool(self) -> Path:
        return self.folder / "spool"

    def runs(self) -> list[Path]:
        """Spool files of stage runs, oldest first."""
        return sorted(self.spool.glob("*.jsonl"))

    def is_empty(self) -> bool:
        return not self.runs() and not any(self.groups())

    def runs_of(self, group: str) -> list[Path]:
        return [file for file in self.runs() if file.stem.endswith(f"-{group}")]

    def groups(self) -> Iterator[Group]:
        for file in sorted(self.spool.glob("*.group")):
            try:
                raw = json.loads(file.read_text())
            except FileNotFoundError:  # closed meanwhile
                continue
            yield Group.of(raw)

    def group_here(self) -> Group | None:
        """The open pipeline run that this process takes part in, if it was started."""
        owner = Owner.of_group()
        return next((g for g in self.groups() if g.owner.is_same(owner) and not g.ended), None)

    def join_group(self, experiment: str, stage: str) -> Group:
        """The pipeline run that this process takes part in, started if need be."""
        self.spool.mkdir(parents=True, exist_ok=True)
        group = self.group_here()
        if not group:
            group = Group(secrets.token_hex(4), Owner.of_group(), time.time(), experiment, _user())
        group = replace(group, stages=(*group.stages, stage))
        group.write(self.spool)
        return group

    def registered(self, group: str) -> dict[str, Any] | None:
        """What the registry answered to a pipeline run, if it was the last to ask."""
        try:
            answer = json.loads((self.folder / "registered.json").read_text())
        except FileNotFoundError:
            return None
        return answer if answer["group"] == group else None

    def trouble(self) -> str:
        """Why sending failed last; empty when it did not."""
        try:
            return (self.folder / "trouble.txt").read_text().strip()
        except FileNotFoundError:
            return ""

    def try_lock(self) -> int | None:
        """Descriptor of the lock that the sender holds; None while another does."""
        lock = os.open(self.folder / "sender.lock", os.O_RDONLY | os.O_CREAT, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return None
        return lock

    def ensure_sender(self) -> None:
        """Start the sender unless one runs; it inherits the lock, as its standard input.

        What it shall send must be in the spool before: a sender looks there once more after it gave
        up its lock.
        """
        lock = self.try_lock()
        if lock is None:
            return
        (self.folder / "trouble.txt").unlink(missing_ok=True)  # of a sender that gave up
        root, log = str(Path(__file__).parents[2]), str(self.folder / "sender.log")
        path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        appended = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        try:
            os.posix_spawn(
                sys.executable,
                [
                    sys.executable,
                    "-m",
                    SENDER,
                    str(self.artifacts),
                    "--locked",
                ],
                {**os.environ, "PYTHONPATH": path, "MLFLOW_TRACKING_URI": self.uri},
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, lock, 0),
                    (os.POSIX_SPAWN_OPEN, 1, log, appended, 0o644),
                    (os.POSIX_SPAWN_DUP2, 1, 2),
                ],
                setsid=True,  # Ctrl-C and a closing terminal end the stage, not the sending
            )
        finally:
            os.close(lock)


def mask(text: str) -> str:
    """The text without the passwords of URLs."""
    return _URL_PASSWORD.sub(r"\1:***@", text)


def read_events(file: Path, offset: int) -> tuple[list[dict[str, Any]], int]:
    """The whole lines of a stage run's file from a byte on, and the byte after them.

    A line that its process did not finish (killed, full disk) is left, or skipped if others follow.
    """
    with file.open("rb") as stream:
        stream.seek(offset)
        content = stream.read()
    whole = content[: content.rfind(b"\n") + 1]
    events = []
    for line in whole.splitlines():
        try:
            events.append(json.loads(line))
        except ValueError:
            print(f"{file.name}: a broken line is skipped: {line[:80]!r}", file=sys.stderr)
    return events, offset + len(whole)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return str(os.getuid())
