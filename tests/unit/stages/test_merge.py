"""What merge refuses before NeMo is imported, and the configuration that it writes."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.core.errors import ArtifactError
from pipeline.stages import merge
from tests.made_artifacts import make_artifact
from tests.unit.model_folders import add_weights, make_model_folder


def config(dtype: str = "bfloat16") -> Any:
    return SimpleNamespace(model=SimpleNamespace(path=Path("m"), name="m", dtype=dtype))


@pytest.mark.parametrize(
    ("imported", "tuned", "wrong"),
    [("dataset", "nemo_adapter", "import"), ("nemo_checkpoint", "hf_checkpoint", "finetune")],
)
def test_inputs_of_another_kind_are_refused_without_nemo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, imported: str, tuned: str, wrong: str
) -> None:
    for name in ("nemo", "megatron", "pipeline.training.nemo.models", "pipeline.models.hf_model"):
        monkeypatch.setitem(sys.modules, name, None)
    inputs = {
        "import": make_artifact(tmp_path, "import", imported),
        "finetune": make_artifact(tmp_path, "finetune", tuned),
    }
    with pytest.raises(ArtifactError, match=f"stage={wrong}"):
        merge.run(config(), inputs, tmp_path)


def test_the_written_configuration_says_the_written_precision(tmp_path: Path) -> None:
    source = add_weights(make_model_folder(tmp_path / "model", "demo"))
    content = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(content | {"torch_dtype": "float32"}))
    merge._write_assets(config("float16"), source, tmp_path / "out")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written == content | {"dtype": "float16", "torch_dtype": "float16"}
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (
        source / "tokenizer.json"
    ).read_bytes()
    assert not (tmp_path / "out" / "model.safetensors").exists()
