"""Files that DVC keeps in a project, checked before DVC reads them.

What DVC can make again (dvc.lock, its locks) is moved aside when it is broken. Stages that are up
to date are not made again, because the runner compares fingerprints. What a person wrote
(.dvc/config) is only reported. Otherwise DVC would end in a traceback, or without a way out.
"""

import json
import re
from collections.abc import Callable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from pipeline.core.artifact import kept, open_artifact
from pipeline.core.console import get_console
from pipeline.core.errors import ArtifactError, Busy, ConfigError, ResourceError
from pipeline.core.paths import CONF, MANIFEST, PARAMS_FILE, ROOT
from pipeline.orchestration.graph import read_yaml

_NUMBER = re.compile(r"[-+]?\d+(\.\d*)?e[-+]?\d+", re.ASCII | re.IGNORECASE)
LOCK, RWLOCK = "dvc.lock", ".dvc/tmp/rwlock"
CONFIG, LOCAL = ".dvc/config", ".dvc/config.local"
DVC_CONFIG = """\
[core]
    analytics = false
    check_update = false
[hydra]
    enabled = true
"""
# The first line of .dvc/config.local, which is not committed: what holds on this machine only.
OURS = "# Written by `python -m pipeline`; remove this line to keep your own changes."


def check(project: Path) -> None:
    """Mend what can be mended, and refuse the rest.

    Raises:
        ConfigError: a file that a person wrote cannot be read. Busy: DVC runs already.
        ResourceError: a broken file cannot be moved aside.
    """
    try:
        if not (project / ".dvc").exists():
            write_folder(project)
        _check_config(project)
        _write_local(project)
    except OSError as error:
        where = error.filename or project / ".dvc"
        raise ResourceError(f"{where} cannot be written ({error.strerror}): allow it") from error
    for name in (".dvc/tmp", ".dvc/tmp/lock", ".dvc/tmp/rwlock.lock"):
        place = project / name
        if place.exists() and place.is_dir() != (name == ".dvc/tmp"):
            _move_aside(place, "it is of the wrong kind")
    _refuse_beside_dvc(project / RWLOCK)
    _read(project / LOCK, _parse_lock)


def write_folder(project: Path) -> None:
    """Write .dvc/, as `dvc init` would, with Hydra's composition for `dvc exp run -S`.

    Raises:
        OSError: it cannot be written.
    """
    project = project.resolve()
    text = DVC_CONFIG
    if CONF.parent != ROOT:  # the package has conf/ in it
        text += "    config_module = pipeline.conf\n"
    (project / ".dvc").mkdir(exist_ok=True)
    (project / ".dvc/.gitignore").write_text("/config.local\n/tmp\n/cache\n")
    (project / CONFIG).write_text(text)
    _write_local(project)


def _in_git(folder: Path) -> bool:
    return any((above / ".git").exists() for above in (folder, *folder.parents))


def forget_what_differs(project: Path, artifacts: Path, *, reread: bool = False) -> None:
    """Remove from dvc.lock the stages whose artifacts were made with other settings than it says,
    or whose files are not those that their manifests name.

    DVC records the params.yaml that it finds when a stage ends. If another run has written one
    meanwhile, dvc.lock describes an artifact that was never made. Without the entry DVC starts the
    stage, and the runner compares the fingerprint. DVC itself looks at manifests only.

    reread: read every byte of the files, not only of those that changed.
    """
    lock = _read(project / LOCK, _parse_lock)
    if not lock:
        return
    wrong = []
    for stage, entry in lock["stages"].items():
        here = artifacts / stage
        made = next((m for place, m in kept(artifacts, stage) if place == here), None)
        recorded = entry.get("params", {}).get(PARAMS_FILE)
        other = made and recorded is not None and _numbers(made.config) != _numbers(recorded)
        if other or ((here / MANIFEST).is_file() and not _is_whole(here, reread=reread)):
            wrong.append(stage)
    if wrong:
        import yaml

        stages = {name: entry for name, entry in lock["stages"].items() if name not in wrong}
        temporary = project / f"{LOCK}.tmp"
        temporary.write_text(yaml.safe_dump({**lock, "stages": stages}, sort_keys=False))
        temporary.replace(project / LOCK)


def _numbers(value: Any) -> Any:
    """Settings with numbers where a text could be one: DVC writes 1e-08, which YAML 1.1 reads as a
    text."""
    if isinstance(value, Mapping):
        return {key: _numbers(inside) for key, inside in value.items()}
    if isinstance(value, list | tuple):
        return [_numbers(inside) for inside in value]
    is_number = isinstance(value, str) and _NUMBER.fullmatch(value)
    return float(value) if is_number else value


def _is_whole(place: Path, *, reread: bool) -> bool:
    try:
        open_artifact(place, reread=reread)
    except ArtifactError as error:
        get_console().print(f"made again: {error}", soft_wrap=True, markup=False)
        return False
    return True


def _parse_lock(content: bytes) -> Mapping[str, Any]:
    if any(line.startswith(b"<<<<<<< ") for line in content.splitlines()):
        raise ValueError("it has conflict markers")
    lock = read_yaml(content)
    if not isinstance(lock, dict) or not isinstance(lock.get("stages", {}), dict):
        raise ValueError("it holds no stages")
    lock.setdefault("stages", {})
    for entry in lock["stages"].values():
        if not isinstance(entry, dict) or not isinstance(entry.get("params", {}), dict):
            raise ValueError("one of its stages is no mapping")
    return lock


def _parse_rwlock(content: bytes) -> set[int]:
    """The processes that DVC says hold files."""
    held = json.loads(content)
    entries = [*held.get("write", {}).values(), *chain(*held.get("read", {}).values())]
    return {int(entry["pid"]) for entry in entries if str(entry["cmd"])}


def _refuse_beside_dvc(file: Path) -> None:
    """Raise Busy while a `dvc repro` or `dvc exp run` that a user started reads params.yaml."""
    pids = _read(file, _parse_rwlock) or set()
    alive = sorted(pid for pid in pids if _is_dvc(pid))
    if alive:
        raise Busy(
            f"DVC (process {alive[0]}) runs the graph of {file.parents[2]}: wait for it, or end it"
        )
    if any(Path(f"/proc/{pid}").exists() for pid in pids):
        file.unlink()  # another program has the pid of a DVC that was killed; DVC would wait for it


def _is_dvc(pid: int) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return any(b"dvc" in word for word in words)


def _read(file: Path, parse: Callable[[bytes], Any]) -> Any:
    """What a file that DVC wrote says; None if there is none, or if it was broken."""
    try:
        return parse(file.read_bytes())
    except FileNotFoundError:
        return None
    except PermissionError as error:
        raise ConfigError(f"{file} cannot be read ({error.strerror}): allow it") from error
    except Exception as error:  # anything that a parser can raise
        _move_aside(file, _first_line(error))
        return None


def _move_aside(file: Path, why: str) -> None:
    broken = file.with_name(f"{file.name}.broken")
    number = 1
    while broken.exists():
        number += 1
        broken = file.with_name(f"{file.name}.broken{number}")
    try:
        file.rename(broken)
    except OSError as error:
        raise ResourceError(
            f"{file} cannot be read ({why}), nor moved ({error.strerror}): remove it"
        ) from error
    get_console().print(
        f"{file} cannot be read ({why}): it is moved to {broken.name}, and DVC writes a new one",
        soft_wrap=True,
        markup=False,
    )


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__


def _check_config(project: Path) -> None:
    """Raise ConfigError unless DVC can read its configuration."""
    for place in (project / CONFIG, project / LOCAL):
        try:
            _parse_config(place)
        except (
            OSError,
            ValueError,
            SyntaxError,
            RecursionError,
        ) as error:  # ConfigObj's is the third
            raise ConfigError(
                f"{place} cannot be read ({_first_line(error)}): correct it, or run "
                f"`git checkout {CONFIG}`, or remove .dvc/ for a new one"
            ) from error


def _parse_config(file: Path) -> Mapping[str, Any]:
    from configobj import ConfigObj

    if not file.exists():
        return {}
    return ConfigObj(file.read_text().splitlines(), interpolation=False)


def _write_local(project: Path) -> None:
    """Write .dvc/config.local: DVC works without git where there is none, as in an unpacked
    archive, and finds conf/ of a checkout that the project is not part of.
    """
    file, said = project / LOCAL, _parse_config(project / CONFIG)
    before = file.read_text() if file.exists() else OURS
    if not before.startswith(OURS):
        return
    lines = [OURS]
    if not _in_git(project) and str(said.get("core", {}).get("no_scm")).lower() != "true":
        lines += ["[core]", "    no_scm = true"]
    hydra = said.get("hydra", {})
    finds = "config_dir" in hydra or "config_module" in hydra
    if hydra and not finds and not (project / "conf/config.yaml").exists():
        lines += ["[hydra]", f"    config_dir = {CONF}"]
    text = "\n".join([*lines, ""])
    if len(lines) == 1:
        file.unlink(missing_ok=True)
    elif text != before:
        file.write_text(text)
        if "[core]" in lines and "[core]" not in before:
            get_console().print(
                f"{project} is in no git repository: DVC runs without git ({LOCAL} says so)",
                soft_wrap=True,
                markup=False,
            )
