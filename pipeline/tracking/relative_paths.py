"""Paths in the embedded MLflow store, kept relative to the project, so that it can move.

MLflow writes absolute paths. A project that was moved would go on writing to its old place, and a
copy would write into the original. So the store's paths are rewritten relative to the folder that
holds the artifacts, before the sender uses the store and after it adds an experiment. MLflow
resolves them against the working folder: `mlflow ui` is to be run in the project.

Imports only the standard library.
"""

import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote

FILES = "/mlflow/files/"  # below the folder of artifacts
# Columns with places of files, by table.
LOCATIONS = {
    "experiments": "artifact_location",
    "runs": "artifact_uri",
    "logged_models": "artifact_location",
    "model_versions": "storage_location",
}
# Texts that name an artifact of the pipeline: tags of runs, and sources of datasets.
TEXTS = {"tags": "value", "datasets": "dataset_source"}


def make_relative(database: Path) -> None:
    """Rewrite the paths in a store that MLflow made, here or where it lay before.

    database: <artifacts>/mlflow/mlflow.db. A store without its tables is left alone.
    """
    artifacts = database.parent.parent
    with closing(sqlite3.connect(database, timeout=60)) as store, store:
        columns = _columns(store)
        folders = {str(artifacts)}
        for table, column in LOCATIONS.items():
            if column in columns.get(table, ()):
                folders |= _rewrite_locations(store, table, column, artifacts.name)
        for table, column in TEXTS.items():
            if column in columns.get(table, ()):
                for folder in folders:
                    store.execute(
                        f"UPDATE {table} SET {column} = replace({column}, :old, :new) "
                        f"WHERE instr({column}, :old)",
                        {"old": f"{folder}/", "new": f"{artifacts.name}/"},
                    )
        if "experiments" in columns:  # MLflow's own, which the pipeline does not use
            store.execute(
                "UPDATE experiments SET artifact_location = 'mlruns/0' "
                "WHERE experiment_id = 0 AND artifact_location LIKE '%/mlruns/0'"
            )


def _columns(store: sqlite3.Connection) -> Mapping[str, set[str]]:
    tables = store.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    return {
        table: {row[1] for row in store.execute(f"PRAGMA table_info({table})")}
        for (table,) in tables
    }


def _rewrite_locations(store: sqlite3.Connection, table: str, column: str, name: str) -> set[str]:
    """Make the column's paths relative; the folders of artifacts that absolute ones were in.

    A path is known by the part that every embedded store has. name: the folder of artifacts is
    called so now.
    """
    rows = store.execute(
        f"SELECT rowid, {column} FROM {table} WHERE instr({column}, ?)", (FILES,)
    ).fetchall()
    folders = set()
    for row, location in rows:
        is_url = location.startswith("file://")
        path = unquote(location.removeprefix("file://")) if is_url else location
        folder, _, rest = path.partition(FILES)
        if folder.startswith("/"):
            folders.add(folder)
        if folder != name:
            store.execute(
                f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (f"{name}{FILES}{rest}", row)
            )
    return folders
