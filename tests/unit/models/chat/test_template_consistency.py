from pathlib import Path

import pytest

from pipeline.core.errors import DataError
from pipeline.models.chat.template_consistency import shared_chat
from tests.made_artifacts import make_artifact
from tests.unit.model_folders import make_model_folder


def test_a_model_must_render_as_the_dataset_was(tmp_path: Path) -> None:
    ours = make_model_folder(tmp_path / "ours", "demo")
    files = {f"tokenizer/{file.name}": file.read_bytes() for file in ours.iterdir()}
    dataset = make_artifact(tmp_path, "prepare", "dataset", files=files)
    assert shared_chat(dataset, ours).folder == ours
    theirs = make_model_folder(tmp_path / "theirs", "chatml")
    with pytest.raises(DataError, match="another tokenizer or chat template"):
        shared_chat(dataset, theirs)
