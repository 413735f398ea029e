"""Stores that other versions of MLflow made: upgraded whole, or refused in one sentence.

mlflow_3_2.sql is a dump of what MLflow 3.2.0 wrote for a fine-tune and a registration.
"""

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import mlflow.store.db.utils
import pytest

from pipeline.core.errors import PipelineError
from pipeline.tracking import mlflow_versions
from pipeline.tracking.mlflow_sender import STAGE, Sender
from pipeline.tracking.mlflow_store import upgrade_store
from pipeline.tracking.outbox import Destination, embedded_store
from pipeline.tracking.sender_process import reason

DUMP = Path(__file__).parent / "mlflow_3_2.sql"
REVISION = "770bee3ae1dd"  # of MLflow 3.2


@pytest.fixture
def artifacts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    # Set first, so that what MLflow itself writes there is removed after the test.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    database = embedded_store(tmp_path)
    database.parent.mkdir()
    with closing(sqlite3.connect(database)) as store:
        store.executescript(DUMP.read_text())
    return tmp_path


def revision_of(database: Path) -> str:
    with closing(sqlite3.connect(database)) as store:
        return store.execute("SELECT version_num FROM alembic_version").fetchone()[0]


def test_an_older_store_is_upgraded_with_all_it_holds(artifacts: Path) -> None:
    database = embedded_store(artifacts)
    kept = database.with_name(f"mlflow.db.{REVISION}")
    before = database.read_bytes()

    client = Sender(Destination.of(artifacts)).client
    experiment = client.get_experiment_by_name("bank")
    runs = client.search_runs([experiment.experiment_id])
    assert {run.data.tags.get(STAGE, "") for run in runs} == {"", "finetune", "register"}
    (tuned,) = [run for run in runs if run.data.tags.get(STAGE) == "finetune"]
    assert len(client.get_metric_history(tuned.info.run_id, "train/loss")) == 30
    assert [given.dataset.name for given in tuned.inputs.dataset_inputs] == ["prepare"]
    version = client.get_model_version_by_alias("bank-model", "champion")
    assert version.tags["exact_match"] == "0.92"
    model = client.get_logged_model(version.source.removeprefix("models:/"))
    assert {metric.key for metric in model.metrics} >= {"exact_match/fp8"}
    assert kept.read_bytes() == before

    upgraded = database.stat()
    upgrade_store(f"sqlite:///{database}")
    assert database.stat() == upgraded  # once is enough


def test_the_registry_is_asked_through_an_older_store(
    artifacts: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", Destination.of(artifacts).uri)
    assert mlflow_versions.main("bank-model", "champion") == 0
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (answer["version"], answer["aliases"]) == (1, ["candidate", "champion"])


def test_an_upgrade_that_is_interrupted_leaves_the_store_as_it_was(
    artifacts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = embedded_store(artifacts)
    uri, before = f"sqlite:///{database}", database.read_bytes()
    upgrade = mlflow.store.db.utils._upgrade_db

    def upgrade_and_die(engine: object) -> None:
        upgrade(engine)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(mlflow.store.db.utils, "_upgrade_db", upgrade_and_die)
        with pytest.raises(KeyboardInterrupt):
            upgrade_store(uri)
    assert database.read_bytes() == before
    upgrade_store(uri)
    assert revision_of(database) == mlflow.store.db.utils._get_latest_schema_revision()
    assert not database.with_name("mlflow.db.upgrading").exists()


def test_a_newer_store_is_refused_in_one_sentence(artifacts: Path) -> None:
    database = embedded_store(artifacts)
    with closing(sqlite3.connect(database)) as store, store:
        store.execute("UPDATE alembic_version SET version_num = 'ffffffffffff'")
    before = database.read_bytes()
    with pytest.raises(PipelineError, match="was made by a newer MLflow than") as refused:
        Sender(Destination.of(artifacts))
    assert reason(refused.value) == str(refused.value)  # whole, as the user reads it
    assert str(database) in str(refused.value)
    assert database.read_bytes() == before


@pytest.mark.parametrize("uri", ["http://team:5000", "postgresql://team/mlflow"])
def test_servers_are_left_alone(uri: str) -> None:
    upgrade_store(uri)


def test_a_new_file_is_left_to_mlflow(tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    uri = f"sqlite:///{database}"
    upgrade_store(uri)
    assert not database.exists()
    database.touch()  # as a process that was killed at once leaves it
    upgrade_store(uri)
    assert database.stat().st_size == 0
