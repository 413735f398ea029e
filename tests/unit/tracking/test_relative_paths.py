"""Paths in the embedded store do not depend on where the project lies."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from pipeline.tracking.relative_paths import make_relative


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """What MLflow wrote while the project lay in "/old/my shop"."""
    file = tmp_path / "shop" / "artifacts" / "mlflow" / "mlflow.db"
    file.parent.mkdir(parents=True)
    at = "file:///old/my%20shop/artifacts/mlflow/files/bank"
    rows = {
        "experiments (experiment_id, artifact_location)": [(0, "/old/mlruns/0"), (1, at)],
        "runs (run_uuid, artifact_uri)": [("r", f"{at}/r/artifacts")],
        "logged_models (model_id, artifact_location)": [("m", f"{at}/models/m/artifacts")],
        "model_versions (version, storage_location)": [
            (1, f"{at}/models/m/artifacts"), (2, "s3://bucket/artifacts/mlflow/x")],
        "tags (key, value)": [("artifact.path", "/old/my shop/artifacts/merge"), ("a", "b")],
        "datasets (name, dataset_source)": [
            ("prepare", '{"uri": "/old/my shop/artifacts/prepare"}'),
            ("raw", '{"uri": "/data/chats"}')],
    }  # fmt: skip
    with closing(sqlite3.connect(file)) as connection, connection:
        for table, values in rows.items():
            connection.execute(f"CREATE TABLE {table}")
            connection.executemany(f"INSERT INTO {table.split()[0]} VALUES (?, ?)", values)
    return file


def column(store: Path, query: str) -> list[str]:
    with closing(sqlite3.connect(store)) as connection:
        return [value for (value,) in connection.execute(query)]


def test_paths_of_a_store_that_was_moved_are_relative(store: Path) -> None:
    for _ in range(2):  # the second time changes nothing
        make_relative(store)
        at = "artifacts/mlflow/files/bank"
        assert column(store, "SELECT artifact_location FROM experiments") == ["mlruns/0", at]
        assert column(store, "SELECT artifact_uri FROM runs") == [f"{at}/r/artifacts"]
        models = [f"{at}/models/m/artifacts"]
        assert column(store, "SELECT artifact_location FROM logged_models") == models
        models += ["s3://bucket/artifacts/mlflow/x"]
        assert column(store, "SELECT storage_location FROM model_versions") == models
        assert column(store, "SELECT value FROM tags") == ["artifacts/merge", "b"]
        assert column(store, "SELECT dataset_source FROM datasets") == [
            '{"uri": "artifacts/prepare"}', '{"uri": "/data/chats"}',
        ]  # fmt: skip


def test_paths_follow_a_folder_of_artifacts_that_was_renamed(store: Path) -> None:
    make_relative(store)
    renamed = store.parents[1].rename(store.parents[2] / "results")
    make_relative(renamed / "mlflow" / "mlflow.db")
    (place,) = column(renamed / "mlflow" / "mlflow.db", "SELECT artifact_uri FROM runs")
    assert place == "results/mlflow/files/bank/r/artifacts"


def test_a_new_store_is_left_alone(tmp_path: Path) -> None:
    make_relative(tmp_path / "mlflow.db")
    assert column(tmp_path / "mlflow.db", "SELECT name FROM sqlite_master") == []
