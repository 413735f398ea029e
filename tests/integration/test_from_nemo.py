"""Checkpoints of NeMo 2.0 as others have them become Hugging Face folders, and run nothing."""

import json
import pickle
import shutil
from pathlib import Path, PosixPath
from typing import Any

import pytest
import torch
import yaml

from pipeline.core.errors import DataError
from pipeline.models.architecture import read_shape
from pipeline.models.hf_model import WeightReader
from pipeline.training import from_nemo
from pipeline.training.nemo import models as nemo
from pipeline.training.nemo.patches import checkpoint_safety, records
from pipeline.training.nemo.session import nemo_session
from tests.integration.family_case import MODELS, VARIANTS

READ = {name: MODELS[name] for name in ("llama", "qwen2", "qwen3", "mistral", "gemma", "nemotron")}
READ |= {"llama, llama3 rope": VARIANTS["llama, llama3 rope"]}
CALLED: list[str] = []


def call(what: str) -> None:
    """What a hostile checkpoint names."""
    CALLED.append(what)


class Hostile:
    def __reduce__(self) -> Any:
        return call, ("index",)


def with_what_others_have(weights: Path) -> None:
    """Add what Transformer Engine and torch put into an index, and a call."""
    from torch.distributed.checkpoint.filesystem import _StorageInfo
    from torch.distributed.checkpoint.metadata import (
        BytesStorageMetadata,
        MetadataIndex,
        StorageMeta,
    )

    index = pickle.loads((weights / ".metadata").read_bytes())
    name = "decoder.layers.self_attention.linear_qkv._extra_state/shard_0_2"
    index.state_dict_metadata[name] = BytesStorageMetadata()
    index.storage_data[MetadataIndex(name)] = _StorageInfo("__0_0.distcp", 0, 1)
    index.planner_data = {"a": ("a", 1.5), "b": {1, 2}, "c": frozenset("x"), "d": b"bytes"}
    index.storage_meta = StorageMeta(checkpoint_id=PosixPath("/elsewhere"), save_id="1")
    index.hostile = Hostile()
    (weights / ".metadata").write_bytes(pickle.dumps(index))
    (weights / "common.pt").write_bytes(pickle.dumps(Hostile()))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """The folder that each was imported from, and the checkpoint as NeMo and torch write it."""
    root, made = tmp_path_factory.mktemp("nemo"), {}
    with pytest.MonkeyPatch.context() as patch:
        with nemo_session():
            pass  # imports NeMo, and replaces the writer until it ends
        patch.setattr(checkpoint_safety, "_finish", records.INDEX_WRITER.original("finish"))
        with nemo_session():
            for name, make in READ.items():
                folder = root / name.replace(", ", "-").replace(" ", "-")
                source = make(folder / "source")
                nemo.import_hf(source, folder / "checkpoint")
                shutil.rmtree(folder / "checkpoint" / "hf")
                with_what_others_have(folder / "checkpoint" / "weights")
                made[name] = (source, folder / "checkpoint")
    return made


@pytest.mark.parametrize("name", READ)
def test_a_checkpoint_becomes_the_folder_that_it_was_made_from(
    checkpoints: dict[str, tuple[Path, Path]], name: str, tmp_path: Path
) -> None:
    source, checkpoint = checkpoints[name]
    from_nemo.convert(checkpoint, tmp_path / "hf")
    assert CALLED == []
    with WeightReader(source) as before, WeightReader(tmp_path / "hf") as after:
        assert sorted(after.names) == sorted(before.names)
        for tensor in before.names:
            assert torch.equal(after.tensor(tensor), before.tensor(tensor).float()), tensor
    assert read_shape(tmp_path / "hf") == read_shape(source)
    proof = json.loads((tmp_path / "hf" / "conversion.json").read_text())["nemo_vs"]["hf_written"]
    assert proof["same_greedy_tokens"] + proof["undecided"] == proof["positions"] == 240
    template = json.loads((source / "tokenizer_config.json").read_text())["chat_template"]
    assert template == json.loads(
        (tmp_path / "hf" / "tokenizer_config.json").read_text()
    )["chat_template"]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rotary_interleaved": True}, "its rotary_interleaved is True"),
        ({"activation_func": {"_target_": "os.system"}}, "its activation_func is 'os.system'"),
        ({"softmax_scale": 0.7}, "its softmax_scale is 0.7"),
        ({"something_new": 3}, "its something_new is 3"),
        ({"hidden_size": "x"}, "is of another kind"),
        ({"_target_": "evil.module.LlamaConfig"}, "its configuration is a evil.module"),
        ({"transformer_layer_spec": {"_target_": "evil.spec"}}, "its transformer_layer_spec"),
        ({"num_layers": 3}, "has 2 layers of"),
        ({"qk_layernorm": True}, "its qk_layernorm is True"),
    ],
)
def test_what_would_be_another_model_is_refused(
    checkpoints: dict[str, tuple[Path, Path]], tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(checkpoints["llama"][1], checkpoint)
    file = checkpoint / "context" / "model.yaml"
    content = yaml.safe_load(file.read_text())
    content["config"].update(changes)
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(DataError) as caught:
        from_nemo.convert(checkpoint, tmp_path / "hf")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "hf").exists()
    assert not (tmp_path / "hf.partial").exists()


def test_what_is_no_such_checkpoint_is_refused_in_one_line(
    checkpoints: dict[str, tuple[Path, Path]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = checkpoints["llama"][1]

    def refused(name: str, edit: Any) -> str:
        checkpoint = tmp_path / name
        shutil.copytree(whole, checkpoint)
        edit(checkpoint)
        assert from_nemo.main([str(checkpoint), str(tmp_path / "out")]) == 3
        said = capsys.readouterr().err.strip()
        assert said.count("\n") == 0
        return said

    assert "zarr" in refused("zarr", lambda c: (c / "weights/metadata.json").write_text(
        '{"sharded_backend": "zarr"}'))  # fmt: skip
    assert "cannot be read" in refused("code", lambda c: (c / "context/model.yaml").write_text(
        "!!python/object/apply:os.system [true]"))  # fmt: skip
    assert "cannot be read" in refused("none", lambda c: (c / "context/model.yaml").unlink())
    assert "no tokenizer.json" in refused("words", lambda c: shutil.rmtree(c / "context/hf"))
    assert "another kind" in refused("away", lambda c: _tokenizer(c, "../../elsewhere"))
    assert "is not the index" in refused(
        "index", lambda c: (c / "weights/.metadata").write_bytes(b"x")
    )
    assert from_nemo.main([str(whole), str(tmp_path)]) == 2
    assert "is there already" in capsys.readouterr().err


def _tokenizer(checkpoint: Path, name: str) -> None:
    file = checkpoint / "context" / "model.yaml"
    content = yaml.safe_load(file.read_text())
    content["tokenizer"]["pretrained_model_name"] = name
    file.write_text(yaml.safe_dump(content))
