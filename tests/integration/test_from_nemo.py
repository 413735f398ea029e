"""Checkpoints of NeMo as others have them become Hugging Face folders, and run nothing."""

import json
import pickle
import shutil
import tarfile
from pathlib import Path, PosixPath
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from pipeline.__main__ import main
from pipeline.core.artifact import open_artifact
from pipeline.core.errors import DataError
from pipeline.models.architecture import read_shape
from pipeline.models.hf_model import WeightReader
from pipeline.models.sources import checkpoints as checkpoints_as_sources
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

    assert "zarr3" in refused("zarr3", lambda c: (c / "weights/metadata.json").write_text(
        '{"sharded_backend": "zarr3"}'))  # fmt: skip
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


def test_model_path_takes_a_checkpoint(
    checkpoints: dict[str, tuple[Path, Path]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    source, whole = checkpoints["qwen2"]
    checkpoint, artifacts = tmp_path / "tuned", tmp_path / "artifacts"
    shutil.copytree(whole, checkpoint)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    words = ["tracking.enabled=false", f"artifacts={artifacts}", "model=local", "model.name=tiny"]
    with monkeypatch.context() as here:  # NeMo's libraries are there already

        def convert(command: list[str], **_: Any) -> SimpleNamespace:
            code = from_nemo.main(command[3:])
            return SimpleNamespace(returncode=code, stderr=capfd.readouterr().err)

        here.setattr(checkpoints_as_sources, "subprocess", SimpleNamespace(run=convert))
        code = main(["stage=import", *words, f"model.path={checkpoint}"])
    assert code == 0, capfd.readouterr().err
    proof = open_artifact(artifacts / "import").manifest.proof
    assert proof["source"]["source"] == "nemo://tuned"  # no path of this machine
    assert read_shape(artifacts / "import" / "hf") == read_shape(source)
    # It is what it is now: one that was written again is another model.
    description = checkpoint / "context" / "model.yaml"
    content = yaml.safe_load(description.read_text())
    content["config"]["softmax_scale"] = 0.7
    description.write_text(yaml.safe_dump(content))
    capfd.readouterr()
    assert main(["stage=import", *words, f"model.path={checkpoint}"]) == 3  # by its own process
    said = capfd.readouterr().err.strip()
    assert "its softmax_scale is 0.7" in said
    assert said.count("\n") == 0


# As NeMo 1.0 describes Llama, beside much that says how it was trained.
DESCRIPTION = {
    "mcore_gpt": True, "micro_batch_size": 4, "tensor_model_parallel_size": 1,
    "encoder_seq_length": 192, "max_position_embeddings": 192, "init_method_std": 0.1,
    "use_scaled_init_method": True, "hidden_dropout": 0.0, "attention_dropout": 0.0,
    "ffn_dropout": 0.0, "kv_channels": None, "apply_query_key_layer_scaling": True,
    "normalization": "rmsnorm", "do_layer_norm_weight_decay": False, "bias": False,
    "activation": "fast-swiglu", "headscale": False, "transformer_block_type": "pre_ln",
    "normalize_attention_scores": True, "position_embedding_type": "rope",
    "rotary_percentage": 1.0, "attention_type": "multihead",
    "share_embeddings_and_output_weights": False, "megatron_amp_O2": True,
    "tokenizer": {"library": "huggingface", "type": "meta-llama/Llama-2-7b-hf"},
    "optim": {"name": "fused_adam"}, "data": {"splits_string": None}, "precision": "bf16",
    "target": "nemo.collections.nlp.models.language_modeling.megatron_gpt_model.MegatronGPTModel",
}  # fmt: skip


def archive_of(checkpoint: Path, source: Path, place: Path, form: str) -> Path:
    """A model of NeMo 1.0, unpacked, with the weights of a checkpoint of 2.0."""
    from torch.distributed.checkpoint import FileSystemWriter, save

    from pipeline.training.nemo.stored_weights import stored_weights

    shape = read_shape(source)
    sizes = {
        "num_layers": shape.layers, "hidden_size": shape.hidden, "ffn_hidden_size": shape.ffn,
        "num_attention_heads": shape.heads, "num_query_groups": shape.kv_heads,
        "layernorm_epsilon": shape.norm_eps, "rotary_base": shape.rope_theta,
    }  # fmt: skip
    weights = place / "model_weights"
    weights.mkdir(parents=True)
    (place / "model_config.yaml").write_text(yaml.safe_dump(DESCRIPTION | sizes))
    stored = stored_weights(checkpoint)
    tensors = {
        n.replace("module.", "model.", 1): t for n, t in stored.read([*stored.tensors]).items()
    }
    (weights / "metadata.json").write_text(json.dumps({"sharded_backend": form}))
    if form == "torch_dist":
        save(tensors, storage_writer=FileSystemWriter(weights), no_dist=True)
        return place
    for name, tensor in tensors.items():
        (weights / name).mkdir()
        chunk = [min(2, tensor.shape[0]), *[-(-n // 2) + 1 for n in tensor.shape[1:]]]
        _write_zarr(weights / name, tensor.bfloat16(), chunk)
    return place


def _write_zarr(folder: Path, tensor: torch.Tensor, chunk: list[int]) -> None:
    import itertools

    described = {"shape": list(tensor.shape), "chunks": chunk, "dtype": "bfloat16", "order": "C",
                 "compressor": None, "filters": None, "fill_value": None}  # fmt: skip
    (folder / ".zarray").write_text(json.dumps(described))
    counts = [-(-n // c) for n, c in zip(tensor.shape, chunk, strict=True)]
    for place in itertools.product(*map(range, counts)):
        whole = torch.zeros(chunk, dtype=tensor.dtype)
        part = tensor[tuple(slice(p * c, p * c + c) for p, c in zip(place, chunk, strict=True))]
        whole[tuple(map(slice, part.shape))] = part
        (folder / ".".join(map(str, place))).write_bytes(whole.view(torch.int16).numpy().tobytes())


@pytest.mark.parametrize("form", ["torch_dist", "zarr"])
def test_an_archive_of_nemo_1_becomes_a_folder(
    checkpoints: dict[str, tuple[Path, Path]], tmp_path: Path, form: str
) -> None:
    source, checkpoint = checkpoints["llama"]
    folder = archive_of(checkpoint, source, tmp_path / "unpacked", form)
    archive = tmp_path / "llama.nemo"
    with tarfile.open(archive, "w") as tar:
        tar.add(folder, arcname=".")
    with pytest.raises(DataError, match=r"--tokenizer TOKENIZER"):
        from_nemo.convert(archive, tmp_path / "none")
    from_nemo.convert(archive, tmp_path / "hf", source)
    shape = read_shape(tmp_path / "hf")
    assert shape == read_shape(source)
    with WeightReader(source) as before, WeightReader(tmp_path / "hf") as after:
        for tensor in before.names:
            expected = before.tensor(tensor).float()
            wanted = expected.bfloat16().float() if form == "zarr" else expected
            assert torch.equal(after.tensor(tensor).float(), wanted), tensor
    assert not list(tmp_path.glob("*.unpacked"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"activation": "geglu"}, "with activation=geglu"),
        ({"position_embedding_type": "learned_absolute"}, "its position_embedding_type is"),
        ({"new_trick": 2}, "new_trick=2 may change what it computes"),
        ({"mcore_gpt": False}, "mcore_gpt is False"),
        ({"scale_positional_embedding": True}, "scale_positional_embedding=True"),
    ],
)
def test_an_archive_that_computes_otherwise_is_refused(
    checkpoints: dict[str, tuple[Path, Path]], tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    source, checkpoint = checkpoints["llama"]
    folder = archive_of(checkpoint, source, tmp_path / "unpacked", "torch_dist")
    file = folder / "model_config.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | changes))
    with pytest.raises(DataError) as caught:
        from_nemo.convert(folder, tmp_path / "hf", source)
    assert said in str(caught.value)
    assert not (tmp_path / "hf").exists()


def test_an_archive_that_is_no_archive_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.nemo").write_bytes(b"no tar")
    with pytest.raises(DataError, match="cannot be unpacked"):
        from_nemo.convert(tmp_path / "x.nemo", tmp_path / "hf")
    link = tmp_path / "link"
    link.symlink_to("/etc/passwd")
    for name in ("./model_config.yaml", "../model_config.yaml"):
        with tarfile.open(tmp_path / "y.nemo", "w") as tar:
            tar.add(link, arcname=name)
        with pytest.raises(DataError, match="no plain file"):
            from_nemo.convert(tmp_path / "y.nemo", tmp_path / "hf")
    old = tmp_path / "old"
    old.mkdir()
    (old / "model_config.yaml").write_text(yaml.safe_dump(DESCRIPTION))
    (old / "model_weights.ckpt").write_bytes(b"x")
    with pytest.raises(DataError, match="pickles of NeMo before"):
        from_nemo.convert(old, tmp_path / "hf", tmp_path)
