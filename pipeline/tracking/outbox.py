"""The outbox: a folder of stage runs that are not sent to the tracker yet.

    <artifacts>/.tracking/<destination>/
        spool/<run>.jsonl    one stage run, one event per line: start, metrics …, finish
        spool/<run>.files/   copies of its manifest and small reports
        spool/<group>.group  a pipeline run to which stage runs belong, and its owner process
        registered.json      the result of the last registration
        rejected/            runs that MLflow refused; sender.log has the reason
        last_error.txt       why sending failed; absent if it did not
        sender.lock          locked by the process that sends

The folder of the outbox is named spool, as in earlier versions, so that runs from before an upgrade
are sent. Each destination has its own folder, so that an unreachable server delays no other. Its
password stays in the environment. Does not use MLflow's client.
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
from pipeline.core.processes import Process
from pipeline.core.secrets import expand, mask_url

SENDER = "pipeline.tracking.sender_process"
OWNER_VARIABLE = "PIPELINE_RUN"  # "pid:start time" of the process that owns a pipeline run


def group_owner() -> Process:
    """The process that owns the pipeline run, which ends with it.

    It is named by PIPELINE_RUN, else the nearest ancestor that is DVC, else this process.
    """
    named = Process.parse(os.environ.get(OWNER_VARIABLE, ""))
    return named or dvc_above() or Process.this()


def started_by() -> list[Process]:
    """The command and the DVC that started this stage; empty for a stage that a user started."""
    named = Process.parse(os.environ.get(OWNER_VARIABLE, ""))
    return [process for process in (named, dvc_above()) if process]


def dvc_above() -> Process | None:
    """The nearest ancestor of this process that is DVC, if DVC started it."""
    import psutil

    for process in psutil.Process().parents():
        try:
            if "dvc" in [Path(word).name for word in process.cmdline()[:3]]:
                return Process(process.pid, process.create_time())
        except psutil.Error:
            continue
    return None


@dataclass(frozen=True)
class Group:
    """A pipeline run: the stage runs of one `stage=all`, `dvc repro` or single stage.

    created: seconds since 1970. stages: names of the stages so far.
    """

    id: str
    owner: Process
    created: float
    experiment: str
    user: str
    stages: tuple[str, ...] = ()
    ended: bool = False

    @classmethod
    def of(cls, raw: dict[str, Any]) -> "Group":
        return cls(**{**raw, "owner": Process(**raw["owner"]), "stages": tuple(raw["stages"])})

    @property
    def name(self) -> str:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.created))

    def is_open(self) -> bool:
        return not self.ended and self.owner.is_alive()

    def write(self, outbox: Path) -> None:
        temporary = outbox / f"{self.id}.tmp"
        temporary.write_text(json.dumps(asdict(self)))
        temporary.replace(outbox / f"{self.id}.group")


def embedded_store(artifacts: Path) -> Path:
    """The file of the SQLite store that is used if no server is configured. The runs of a sweep are
    tracked in the project's store, where they are compared with the others."""
    return main_folder(artifacts) / "mlflow" / "mlflow.db"


@dataclass(frozen=True)
class Destination:
    """A tracking store.

    uri: may have a password. artifact_root: None if the server chooses it.
    """

    uri: str
    folder: Path
    artifact_root: Path | None

    @classmethod
    def of(cls, artifacts: Path, config: TrackingConfig | None = None) -> "Destination":
        """MLFLOW_TRACKING_URI, else the configured URI, else a SQLite store below `artifacts`."""
        artifacts = main_folder(artifacts.absolute())
        embedded = f"sqlite:///{embedded_store(artifacts)}"
        uri = os.environ.get("MLFLOW_TRACKING_URI") or expand((config and config.uri) or embedded)
        tracking = artifacts / ".tracking"
        if uri == embedded:
            return cls(embedded, tracking / "embedded", artifacts / "mlflow" / "files")
        parts = urlsplit(uri)
        digest = hashlib.sha256(mask_url(uri).encode()).hexdigest()[:8]
        name = re.sub(r"[^\w.-]+", "-", f"{parts.scheme}-{parts.hostname or ''}-{digest}")
        return cls(uri, tracking / name, None)

    @property
    def artifacts(self) -> Path:
        return self.folder.parent.parent

    @property
    def base(self) -> Path:
        """The folder that paths in events, and in an embedded store, are relative to."""
        return self.artifacts.parent

    def relative(self, path: Path) -> str:
        """A path as events hold it: relative if possible, so that a project can move."""
        path = path.absolute()
        return str(path.relative_to(self.base) if path.is_relative_to(self.base) else path)

    @property
    def outbox(self) -> Path:
        return self.folder / "spool"

    def runs(self) -> list[Path]:
        """Files of stage runs, oldest first."""
        return sorted(file for file in self.outbox.glob("*.jsonl") if file.is_file())

    def is_empty(self) -> bool:
        return not self.runs() and not any(self.groups())

    def runs_of(self, group: str) -> list[Path]:
        return [file for file in self.runs() if file.stem.endswith(f"-{group}")]

    def groups(self) -> Iterator[Group]:
        for file in sorted(self.outbox.glob("*.group")):
            try:
                yield Group.of(json.loads(file.read_bytes()))
            except FileNotFoundError:  # closed meanwhile
                continue
            except (OSError, ValueError, TypeError, LookupError, RecursionError):
                # Its stage runs name the group, too, so that the sender writes it again.
                self.reject(file)
                print(f"{file} cannot be read: it is moved to rejected/", file=sys.stderr)

    def reject(self, file: Path) -> None:
        """Move what cannot be sent to rejected/, so that it does not block all later runs."""
        rejected = self.folder / "rejected"
        rejected.mkdir(exist_ok=True)
        file.rename(rejected / file.name)

    def group_here(self) -> Group | None:
        """The open pipeline run of this process, if there is one."""
        owner = group_owner()
        return next((g for g in self.groups() if g.owner.is_same(owner) and not g.ended), None)

    def join_group(self, experiment: str, stage: str) -> Group:
        """The pipeline run of this process, created if there is none."""
        self.outbox.mkdir(parents=True, exist_ok=True)
        group = self.group_here()
        if not group:
            group = Group(secrets.token_hex(4), group_owner(), time.time(), experiment, _user())
        group = replace(group, stages=(*group.stages, stage))
        group.write(self.outbox)
        return group

    def registered(self, group: str) -> dict[str, Any] | None:
        """The registration of a pipeline run, if no later run has registered."""
        try:
            result = json.loads((self.folder / "registered.json").read_bytes())
            return result if result["group"] == group else None
        except (OSError, ValueError, TypeError, LookupError, RecursionError):
            return None  # there is none, or it is broken; MLflow's registry has the registration

    def last_error(self) -> str:
        """Why sending failed; empty if it did not."""
        try:
            return (self.folder / "last_error.txt").read_text(errors="replace").strip()
        except OSError:
            return ""

    def try_lock(self) -> int | None:
        """Acquire the sender's lock. Returns its file descriptor; None if another has it."""
        lock = os.open(self.folder / "sender.lock", os.O_RDONLY | os.O_CREAT, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return None
        return lock

    def ensure_sender(self) -> None:
        """Start the sender unless one runs. It inherits the lock as its standard input.

        Write events before calling this: a sender checks the outbox once more after it has released
        its lock.
        """
        lock = self.try_lock()
        if lock is None:
            return
        (self.folder / "last_error.txt").unlink(missing_ok=True)  # of a sender that gave up
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
                setsid=True,  # Ctrl-C and closing the terminal do not stop it
            )
        finally:
            os.close(lock)


def read_events(file: Path, offset: int) -> tuple[list[dict[str, Any]], int]:
    """The complete lines of a stage run's file from a byte offset, and the offset after them.

    An incomplete line (killed process, full disk) is left, or skipped if others follow.
    """
    with file.open("rb") as stream:
        stream.seek(offset)
        content = stream.read()
    whole = content[: content.rfind(b"\n") + 1]
    events = []
    for line in whole.splitlines():
        try:
            event = json.loads(line)
            if not isinstance(event, dict) or "event" not in event:
                raise ValueError
            events.append(event)
        except (ValueError, RecursionError):
            print(f"{file.name}: a broken line is skipped: {line[:80]!r}", file=sys.stderr)
    return events, offset + len(whole)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return str(os.getuid())
