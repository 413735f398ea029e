"""The embedded registry, read from its file without MLflow."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from pipeline.config.tracking import TrackingConfig
from pipeline.core.errors import ArtifactError, PipelineError
from pipeline.tracking import registry_reader
from pipeline.tracking.outbox import Destination, embedded_store
from pipeline.tracking.registry_reader import read_version, read_versions, versions_in


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Destination:
    """A store with versions 1 and 3 of bank, and one that was deleted."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    file = embedded_store(tmp_path)
    file.parent.mkdir()
    with closing(sqlite3.connect(file)) as store, store:
        store.executescript("""
            CREATE TABLE model_versions (name, version INTEGER, current_stage);
            CREATE TABLE model_version_tags (key, value, name, version INTEGER);
            CREATE TABLE registered_model_aliases (alias, version INTEGER, name);
            INSERT INTO model_versions VALUES ('bank', 3, 'None'), ('bank', 1, NULL),
                ('bank', 2, 'Deleted_Internal'), ('other', 9, 'None');
            INSERT INTO model_version_tags VALUES ('gate', 'passed', 'bank', 3),
                ('digest.build', 'b3', 'bank', 3), ('empty', NULL, 'bank', 1);
            INSERT INTO registered_model_aliases VALUES ('champion', 3, 'bank'),
                ('candidate', 3, 'bank'), ('old', 1, 'bank');
        """)
    config = TrackingConfig(enabled=True, uri=None, experiment="bank", upload_weights=False)
    return Destination.of(tmp_path, config)


def test_versions_have_their_tags_and_aliases(
    place: Destination, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(*_: object) -> None:
        raise AssertionError("MLflow was asked")

    monkeypatch.setattr(registry_reader, "look_up", asked)
    found = read_versions("bank", place)
    assert [(v.number, v.aliases) for v in found] == [(1, ("old",)), (3, ("candidate", "champion"))]
    assert found[1].tags == {"gate": "passed", "digest.build": "b3"}
    assert found[0].tags == {"empty": ""}
    assert read_versions("nobody", place) == []
    for wanted in ("3", 3, "champion", "candidate"):
        assert read_version("bank", wanted, place) == found[1]
    there = r"bank has no version 2: choose one of 1, 3, candidate \(3\), champion \(3\), old \(1\)"
    with pytest.raises(ArtifactError, match=there):
        read_version("bank", "2", place)
    with pytest.raises(ArtifactError, match="no version of nobody is registered yet"):
        read_version("nobody", "champion", place)


def test_a_store_of_another_form_is_left_to_mlflow(
    place: Destination, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = embedded_store(place.artifacts)
    file.write_bytes(b"no database")
    with pytest.raises(PipelineError, match="cannot be read"):
        versions_in(file, "bank")
    answer = {"version": 1, "aliases": ["champion"], "tags": {}, "versions": []}
    monkeypatch.setattr(registry_reader, "look_up", lambda *_: answer)
    assert read_version("bank", "champion", place).number == 1
    assert read_versions("bank", place) == []
