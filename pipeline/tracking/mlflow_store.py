"""An SQLite store made by an older MLflow, brought to the tables of the MLflow installed here.

MLflow does it too, at the first opening, but in place and without a transaction: a process that is
killed meanwhile leaves tables that no version of MLflow can open.
"""

import fcntl
import os
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from pipeline.core.errors import PipelineError

_SQLITE = "sqlite:///"


def upgrade_store(uri: str) -> None:
    """Upgrade the store if it is an SQLite file with an older schema, whole or not at all.

    The file as it was is kept beside it as `<name>.<old revision>`. Servers and new files are left
    alone. May be called by several processes at once.

    Raises:
        PipelineError: the store was made by a newer MLflow.
    """
    database = Path(uri.removeprefix(_SQLITE))
    if not uri.startswith(_SQLITE) or not database.exists():
        return
    if database.is_dir():
        raise PipelineError(f"{database} is a folder: move it away to start a new store")
    with _only_one(database.parent):
        revision = _revision(database)
        if revision and _is_older(revision, database):
            _upgrade(database, revision)


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _revision(database: Path) -> str | None:
    """The schema's revision; None in a database that MLflow has not filled yet."""
    with closing(sqlite3.connect(database)) as store:
        try:
            row = store.execute("SELECT version_num FROM alembic_version").fetchone()
        except sqlite3.OperationalError:  # no such table
            return None
        except sqlite3.DatabaseError as error:
            raise PipelineError(
                f"{database} cannot be read ({error}): put back a backup, or move it away to start "
                "a new store"
            ) from error
    return row[0] if row else None


def _is_older(revision: str, database: Path) -> bool:
    from alembic.script import ScriptDirectory
    from mlflow.store.db.utils import _get_alembic_config
    from mlflow.version import VERSION

    scripts = ScriptDirectory.from_config(_get_alembic_config(str(database)))
    if revision not in {script.revision for script in scripts.walk_revisions()}:
        raise PipelineError(
            f"{database} was made by a newer MLflow than {VERSION}, installed here: use the "
            "version of this project that made it, or move the file away to start a new store"
        )
    return revision != scripts.get_current_head()


def _upgrade(database: Path, revision: str) -> None:
    """Upgrade a copy, and put it into place."""
    from mlflow.store.db.utils import _upgrade_db
    from sqlalchemy import create_engine

    copy = database.with_name(f"{database.name}.upgrading")
    copy.unlink(missing_ok=True)  # of a process that was killed
    with closing(sqlite3.connect(database)) as old, closing(sqlite3.connect(copy)) as new:
        old.backup(new)
    engine = create_engine(f"{_SQLITE}{copy}")
    _upgrade_db(engine)
    engine.dispose()
    kept = database.with_name(f"{database.name}.{revision}")
    kept.unlink(missing_ok=True)
    os.link(database, kept)
    copy.replace(database)
    print(f"{database} is upgraded for this MLflow; as it was: {kept}", file=sys.stderr)
