"""A store of MLflow that cannot be read is named, with what to do; nothing is written into it."""

from pathlib import Path

import pytest

from pipeline.core.errors import PipelineError
from pipeline.tracking.mlflow_store import upgrade_store


@pytest.mark.parametrize(
    "content", [bytes(range(256)) * 8, b"[1, 2]" * 200, b"<<<<<<< HEAD\n" * 90]
)
def test_a_file_that_is_no_database_is_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "mlflow.db"
    file.write_bytes(content)
    with pytest.raises(PipelineError, match=r"mlflow\.db cannot be read .* move it away to start"):
        upgrade_store(f"sqlite:///{file}")
    assert file.read_bytes() == content


def test_a_folder_in_its_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").mkdir()
    with pytest.raises(PipelineError, match="is a folder: move it away"):
        upgrade_store(f"sqlite:///{tmp_path / 'mlflow.db'}")


def test_an_empty_file_is_a_new_store(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"")
    upgrade_store(f"sqlite:///{tmp_path / 'mlflow.db'}")
