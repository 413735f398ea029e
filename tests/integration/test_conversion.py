"""Import and merge on the real NeMo and Megatron-Core, with tiny random models of every family.

The same tests run on a CPU and on a GPU. One process imports NeMo once for all of them.
"""

import errno
import json
import multiprocessing
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline.core.artifact import Outcome
from pipeline.core.errors import ProofFailed
from pipeline.models import hf_model
from pipeline.models.architecture import read_shape
from pipeline.models.files import copy_assets
from pipeline.stages import import_, merge
from pipeline.training.nemo import lora as nemo_adapters
from pipeline.training.nemo import models as nemo
from pipeline.training.nemo.lora import write_adapter
from pipeline.training.nemo.session import nemo_session
from tests.finetune_settings import adapter_settings
from tests.unit.model_folders import make_model_folder

SMALL = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "max_position_embeddings": 256,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"rope_theta": 50_000.0, "rms_norm_eps": 1e-5}),
    "llama with stretched rope": ("Llama", {"rope_scaling": LLAMA3_ROPE}),
    "llama, all biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "qwen2, tied": ("Qwen2", {"tie_word_embeddings": True}),
    "mistral, wide heads": ("Mistral", {"head_dim": 32, "sliding_window": None}),
}
# On a GPU Transformer Engine's products have TF32's precision.
NEAR = 2e-2 if torch.cuda.is_available() else 1e-4
ALL = ["all-linear"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """HF folders of MODELS, with weights that no default would give."""
    import transformers
    from tokenizers import Tokenizer

    made = {}
    for name, (family, settings) in MODELS.items():
        folder = make_model_folder(tmp_path_factory.mktemp("model"), "demo")
        vocab = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()
        torch.manual_seed(0)
        config = getattr(transformers, f"{family}Config")(vocab_size=vocab, **SMALL, **settings)
        model = getattr(transformers, f"{family}ForCausalLM")(config)
        for parameter in model.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
        model.bfloat16().save_pretrained(folder)
        made[name] = folder
    return made


@pytest.fixture(scope="module")
def imported(
    folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Path, Outcome]]:
    """The import stage's work folder and outcome of a model, made once."""
    made: dict[str, tuple[Path, Outcome]] = {}

    def get(name: str) -> tuple[Path, Outcome]:
        if name not in made:
            out = tmp_path_factory.mktemp("imported")
            made[name] = out, import_.run(config(folders[name]), {}, out)
        return made[name]

    return get


def config(folder: Path, dtype: str = "bfloat16") -> Any:
    model = SimpleNamespace(path=folder, name="tiny", dtype=dtype)
    return SimpleNamespace(model=model, artifacts=folder.parent / "artifacts")


@pytest.mark.parametrize("name", MODELS)
def test_an_imported_model_computes_what_its_source_does(
    imported: Callable[[str], tuple[Path, Outcome]], folders: dict[str, Path], name: str
) -> None:
    out, outcome = imported(name)
    proof = outcome.proof["source_vs"]["nemo_reopened"]
    assert outcome.kind == "nemo_checkpoint"
    assert proof["same_greedy_tokens"] == proof["positions"] == 16 + 64 + 160
    assert proof["max_abs_difference"] < NEAR
    shape = read_shape(folders[name])
    assert outcome.metrics["parameters"] == shape.parameters
    # Out again, every weight is the one that went in.
    with nemo_session(), hf_model.WeightReader(folders[name]) as source:
        model = nemo.open_checkpoint(out)
        written = dict(nemo.hf_tensors(model, shape))
        assert written.keys() == dict(shape.tensors()).keys()
        for key, tensor in written.items():
            assert torch.equal(tensor.cpu(), source.tensor(key).float()), key


def test_nemo_itself_reads_the_checkpoint(
    imported: Callable[[str], tuple[Path, Outcome]], folders: dict[str, Path]
) -> None:
    from nemo.collections.llm.gpt.model.qwen2 import Qwen2Config, Qwen2Model
    from nemo.lightning import io

    out, _ = imported("qwen2, tied")
    with nemo_session():
        model = io.load_context(out, subpath="model")
        assert isinstance(model, Qwen2Model)
        assert isinstance(model.config, Qwen2Config)
        assert (model.config.num_layers, model.config.num_query_groups) == (2, 2)
        assert model.config.share_embeddings_and_output_weights
        # The tokenizer comes from the checkpoint, wherever the source went.
        assert Path(model.tokenizer.tokenizer.name_or_path).is_relative_to(out)
        trainer = nemo.connect(model)
        nemo.load_weights(trainer, out)
        model.eval()
        reference = hf_model.logits(
            hf_model.load_model(folders["qwen2, tied"], dtype="float32"), [1, 2, 3]
        )
        torch.testing.assert_close(nemo.logits(model, [1, 2, 3]), reference, atol=NEAR, rtol=0)


def test_a_checkpoint_is_written_by_threads_of_one_process(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nemo, "checkpoint_files", lambda: 3)
    monkeypatch.delattr(multiprocessing.process.BaseProcess, "start")
    sync, synced = os.fsync, []
    monkeypatch.setattr(os, "fsync", lambda file: (synced.append(file), sync(file)))
    with nemo_session(), hf_model.WeightReader(folders["llama"]) as source:
        nemo.import_hf(folders["llama"], tmp_path)
        assert len(list((tmp_path / "weights").glob("*.distcp"))) == 3
        assert len(synced) >= 3
        for key, tensor in nemo.hf_tensors(
            nemo.open_checkpoint(tmp_path), read_shape(folders["llama"])
        ):
            assert torch.equal(tensor.cpu(), source.tensor(key).float()), key


def test_a_disk_that_is_full_is_told_of_a_checkpoint(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with nemo_session(), pytest.raises(Exception, match="No space left"):  # as the runner looks for
        nemo.import_hf(folders["llama"], tmp_path)


def test_weights_in_shards_are_imported(folders: dict[str, Path], tmp_path: Path) -> None:
    sharded, out = tmp_path / "sharded", tmp_path / "out"
    out.mkdir()
    hf_model.load_model(folders["llama"], dtype="bfloat16").save_pretrained(
        sharded, max_shard_size="50KB"
    )
    copy_assets(folders["llama"], sharded)
    assert len(list(sharded.glob("*.safetensors"))) > 1
    outcome = import_.run(config(sharded), {}, out)
    assert outcome.metrics["max_abs_logit_difference"] < NEAR


def test_an_import_that_differs_from_its_source_is_refused(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One weight of the checkpoint is wrong: the proof must see it."""
    save = nemo.save_checkpoint

    def altered(trainer: Any, out: Path) -> None:
        weight = trainer.lightning_module.module.decoder.layers[1].mlp.linear_fc2.weight
        weight.data[3, 5] += 1.0
        save(trainer, out)

    monkeypatch.setattr(nemo, "save_checkpoint", altered)
    with pytest.raises(ProofFailed, match="nemo_reopened does not compute"):
        import_.run(config(folders["llama"]), {}, tmp_path)


def tune(
    base: Path,
    out: Path,
    method: str,
    targets: list[str],
    *,
    rslora: bool = False,
    saved: Sequence[str] = (),
) -> Path:
    """A checkpoint such as finetune leaves, with random changes in place of training."""
    shape = read_shape(base / nemo.ASSETS)
    settings = adapter_settings(
        rank=4, alpha=6, target_modules=targets or ALL, rslora=rslora, modules_to_save=tuple(saved)
    )
    with nemo_session():
        model = nemo.model_for(base / nemo.ASSETS)
        if method == "sft":
            trainer = nemo.connect(model)
            nemo.load_weights(trainer, base)
            _disturb(dict(model.module.named_parameters()))
        else:
            adapter = nemo_adapters.new_adapter(method, settings, shape)
            model.__io__.model_transform = adapter.__io__
            trainer = nemo.connect(model)
            nemo.load_weights(trainer, base)
            # As the adapter's own callback does when training begins.
            model.model_transform = adapter
            model.trainer = trainer
            adapter(model)
            named = model.module.named_parameters()
            trained = (".adapter.", *nemo_adapters.saved_parameters(settings, shape))
            _disturb({n: p for n, p in named if any(part in n for part in trained)})
            for wrapper, chosen in nemo_adapters.partly_adapted(model.module, settings, shape):
                wrapper.adapter.linear_out.weight.data[~chosen] = 0
            nemo_adapters.restore_other_magnitudes(model, settings, shape)
            trainer.strategy.checkpoint_io = adapter.get_wrappped_io()(
                trainer.strategy.checkpoint_io
            )
            adapter.set_params_to_save(trainer)
            adapter.wrapped_io = trainer.strategy.checkpoint_io
            adapter.wrapped_io.model_ckpt_path = base
        nemo.save_checkpoint(trainer, out)
    copy_assets(base / nemo.ASSETS, out / nemo.ASSETS)
    if method != "sft":
        write_adapter(out, method, settings)
    return out


def _disturb(parameters: dict[str, torch.nn.Parameter]) -> None:
    torch.manual_seed(1)
    assert parameters
    for parameter in parameters.values():
        parameter.data += 0.05 * torch.randn_like(parameter)


class Given:
    """The inputs of merge: a base and a tuned checkpoint that stages would have left."""

    def __init__(self, path: Path, kind: str) -> None:
        self.path, self.kind = path, kind

    def require(self, *kinds: str) -> "Given":
        assert self.kind in kinds
        return self


def inputs(base: Path, tuned: Path, method: str) -> Any:
    kind = "nemo_checkpoint" if method == "sft" else "nemo_adapter"
    return {"import": Given(base, "nemo_checkpoint"), "finetune": Given(tuned, kind)}


@pytest.mark.parametrize(
    ("name", "method", "targets"),
    [
        ("llama", "lora", ALL),
        ("llama", "dora", ALL),
        ("qwen2, tied", "lora", ALL),
        ("qwen2, tied", "dora", ALL),  # NeMo's DoRA stretches the bias of query, key and value
        ("llama, all biases", "dora", ALL),  # and leaves those that Megatron-Core adds later
        ("mistral, wide heads", "lora", ALL),
        ("mistral, wide heads", "sft", []),
        ("qwen2, tied", "sft", []),
        ("llama", "lora", ["q_proj", "v_proj", "down_proj"]),
        ("qwen2, tied", "dora", ["k_proj", "up_proj"]),  # with a bias on a part of the rows
        ("mistral, wide heads", "lora", ["mlp"]),
    ],
)
def test_a_merged_model_computes_what_was_trained(
    imported: Callable[[str], tuple[Path, Outcome]],
    folders: dict[str, Path],
    tmp_path: Path,
    name: str,
    method: str,
    targets: list[str],
) -> None:
    base, _ = imported(name)
    rslora = targets not in (ALL, [])
    tuned = tune(base, tmp_path / "tuned", method, targets, rslora=rslora)
    out = tmp_path / "merged"
    out.mkdir()
    outcome = merge.run(config(folders[name]), inputs(base, tuned, method), out)
    steps = outcome.proof["as_trained_vs"]
    adapted = [] if method == "sft" else ["hf_base_with_peft_adapter", "nemo_folded"]
    assert list(steps) == [*adapted, "hf_folded", "hf_written"]
    assert outcome.metrics["max_abs_logit_difference"] < NEAR
    assert outcome.metrics["rounding_loss"] < 0.01
    assert (out / "adapter" / "adapter_model.safetensors").is_file() == (method != "sft")
    # What anyone opens from disk is the tuned model, and no longer the base.
    ids = list(range(5, 60))
    merged = hf_model.load_model(out, dtype="float32")
    source = hf_model.load_model(folders[name], dtype="float32")
    assert merged.config.dtype is torch.float32
    change = (hf_model.logits(merged, ids) - hf_model.logits(source, ids)).abs().max()
    assert change > 5 * outcome.metrics["max_abs_logit_difference"]
    assert change > 3 * outcome.metrics["rounding_max_abs_logit_difference"]
    with hf_model.WeightReader(out) as weights:
        assert weights.tensor("model.norm.weight").dtype is torch.bfloat16
    if method != "sft":
        adapter = json.loads((out / "adapter" / "adapter_config.json").read_text())
        assert (adapter["r"], adapter["lora_alpha"], adapter["use_dora"]) == (
            4,
            6,
            method == "dora",
        )
        parts = "q k v o gate up down".split()
        groups = {"all-linear": parts, "mlp": parts[4:]}
        wanted = groups.get(targets[0]) or [target.removesuffix("_proj") for target in targets]
        assert adapter["target_modules"] == sorted(f"{part}_proj" for part in wanted)
        assert adapter["use_rslora"] == rslora
        adapted_source = hf_model.with_adapter(source, out / "adapter")
        torch.testing.assert_close(
            hf_model.logits(adapted_source, ids),
            hf_model.logits(merged, ids),
            atol=2 * outcome.metrics["rounding_max_abs_logit_difference"] + NEAR,
            rtol=0,
        )


@pytest.mark.parametrize(
    ("name", "method", "saved"),
    [
        ("llama", "lora", ["embed_tokens", "lm_head"]),
        ("llama", "dora", ["lm_head"]),
        ("qwen2, tied", "lora", ["embed_tokens"]),
    ],
)
def test_modules_that_were_trained_whole_are_part_of_the_adapter(
    imported: Callable[[str], tuple[Path, Outcome]],
    folders: dict[str, Path],
    tmp_path: Path,
    name: str,
    method: str,
    saved: list[str],
) -> None:
    base, _ = imported(name)
    tuned = tune(base, tmp_path / "tuned", method, ["q_proj"], saved=saved)
    out = tmp_path / "merged"
    out.mkdir()
    outcome = merge.run(config(folders[name]), inputs(base, tuned, method), out)
    # The chain's first step is the source with PEFT's adapter on it.
    assert outcome.metrics["max_abs_logit_difference"] < NEAR
    adapter = json.loads((out / "adapter" / "adapter_config.json").read_text())
    assert adapter["modules_to_save"] == saved
    source = hf_model.load_model(folders[name], dtype="float32")
    merged = hf_model.load_model(out, dtype="float32")
    for module, tables in (
        ("embed_tokens", [m.model.embed_tokens.weight for m in (source, merged)]),
        ("lm_head", [m.lm_head.weight for m in (source, merged)]),
    ):
        moved = not torch.allclose(*tables, atol=0.01)
        assert moved == (module in saved or source.config.tie_word_embeddings)
    ids = list(range(5, 60))
    adapted = hf_model.with_adapter(source, out / "adapter")
    torch.testing.assert_close(
        hf_model.logits(adapted, ids),
        hf_model.logits(merged, ids),
        atol=2 * outcome.metrics["rounding_max_abs_logit_difference"] + NEAR,
        rtol=0,
    )


def test_written_in_float32_nothing_is_rounded(
    imported: Callable[[str], tuple[Path, Outcome]], folders: dict[str, Path], tmp_path: Path
) -> None:
    base, _ = imported("llama")
    tuned = tune(base, tmp_path / "tuned", "sft", [])
    out = tmp_path / "merged"
    out.mkdir()
    exact = config(folders["llama"], "float32")
    outcome = merge.run(exact, inputs(base, tuned, "sft"), out)
    assert outcome.metrics["rounding_max_abs_logit_difference"] < NEAR


def test_a_merge_that_loses_something_is_refused(
    imported: Callable[[str], tuple[Path, Outcome]],
    folders: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base, _ = imported("llama")
    tuned = tune(base, tmp_path / "tuned", "lora", ALL)
    out = tmp_path / "merged"
    out.mkdir()
    given = inputs(base, tuned, "lora")
    with monkeypatch.context() as patch:  # folded without its scale
        patch.setattr(
            nemo_adapters.AdapterLayer, "folded", lambda self: (self.weight + self.b @ self.a, None)
        )
        with pytest.raises(ProofFailed, match="nemo_folded does not compute"):
            merge.run(config(folders["llama"]), given, out)
    with monkeypatch.context() as patch:  # one matrix of the PEFT adapter is lost
        whole = nemo_adapters.peft_tensors

        def partial(*args: Any) -> dict[str, torch.Tensor]:
            tensors = whole(*args)
            name = "base_model.model.model.layers.1.self_attn.k_proj.lora_B.weight"
            return tensors | {name: torch.zeros_like(tensors[name])}

        patch.setattr(nemo_adapters, "peft_tensors", partial)
        with pytest.raises(ProofFailed, match="hf_base_with_peft_adapter does not compute"):
            merge.run(config(folders["llama"]), given, out)
    with monkeypatch.context() as patch:  # the written files hold another model
        write = hf_model.write_weights
        patch.setattr(
            hf_model,
            "write_weights",
            lambda folder, tensors, dtype: write(
                folder, ((n, t * (1 + 0.01 * ("1.mlp.down" in n))) for n, t in tensors), dtype=dtype
            ),
        )
        with pytest.raises(
            ProofFailed, match=r"layers\.1\.mlp\.down_proj.* differs from the merged weight"
        ):
            merge.run(config(folders["llama"]), given, out)
    with monkeypatch.context() as patch:  # its config.json is another model's
        wrong = {"rms_norm_eps": 10.0, "architectures": ["LlamaForCausalLM"]}
        read = merge.read_json
        patch.setattr(merge, "read_json", lambda *given: read(*given) | wrong)
        with pytest.raises(ProofFailed, match="hf_written does not compute"):
            merge.run(config(folders["llama"]), given, out)
