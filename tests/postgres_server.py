"""A PostgreSQL server of one's own, on loopback, for as long as a block is open.

Needs Debian's postgresql (`apt-get install postgresql`). PostgreSQL refuses to run as root, so root
starts it as the user that the package has made.
"""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

USER = "postgres"
DRIVER = "psycopg2"


def _program(name: str) -> str | None:
    found = [
        shutil.which(name),
        *sorted(map(str, Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))),
    ]
    return next((path for path in reversed(found) if path), None)


def _missing() -> str:
    if not (_program("initdb") and _program("pg_ctl")):
        return "PostgreSQL is not installed: apt-get install postgresql"
    try:
        pwd.getpwnam(USER)
    except KeyError:
        return f"there is no user {USER}, as whom root could run PostgreSQL"
    return ""


needs_postgres = pytest.mark.skipif(bool(_missing()), reason=_missing() or "installed")


@contextmanager
def postgres(port: int) -> Iterator[str]:
    """The address of an empty database, as SQLAlchemy takes it."""
    initdb, pg_ctl = _program("initdb"), _program("pg_ctl")
    assert initdb
    assert pg_ctl
    # Not in pytest's folder, which only its own user may enter.
    with tempfile.TemporaryDirectory(prefix="postgres-", ignore_cleanup_errors=True) as name:
        folder, as_user = Path(name), list[str]()
        if os.getuid() == 0:
            as_user = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]
            shutil.chown(folder, USER, USER)

        def run(*command: str | Path) -> None:
            done = subprocess.run(
                [*as_user, *map(str, command)], cwd=folder, capture_output=True, text=True
            )
            assert not done.returncode, done.stdout + done.stderr

        data = folder / "data"
        run(initdb, "-D", data, "-U", USER, "-A", "trust", "--no-sync", "-E", "UTF8")
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c fsync=off -k {folder}"
        run(pg_ctl, "-D", data, "-w", "-l", folder / "log", "-o", options, "start")
        try:
            yield f"postgresql+{DRIVER}://{USER}@127.0.0.1:{port}/postgres"
        finally:
            run(pg_ctl, "-D", data, "-m", "immediate", "stop")
