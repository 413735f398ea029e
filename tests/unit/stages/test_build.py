"""build: which engine it makes, what it refuses, and what it writes down."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.schema import Config, load
from pipeline.core import hardware
from pipeline.core.artifact import Artifact
from pipeline.core.errors import (
    ArtifactError,
    ConfigError,
    DataError,
    MissingRuntime,
    ProofFailed,
    ResourceError,
)
from pipeline.core.hardware import Gpu, Machine
from pipeline.data.dataset import Row
from pipeline.engines.description import Description
from pipeline.engines.onnxruntime import record as onnxruntime
from pipeline.engines.record import BuildJob, Hosted
from pipeline.engines.trtllm import build as trtllm
from pipeline.engines.vllm import arguments as vllm
from pipeline.models.chat.renderer import Chat
from pipeline.orchestration.compose import compose
from pipeline.stages import build
from tests.made_artifacts import make_artifact
from tests.unit.model_folders import add_weights, make_model_folder

GPU = Gpu("NVIDIA H200", 2**37, "9.0", False)


@pytest.fixture(scope="module")
def tree() -> dict[str, Any]:
    return compose([])


@pytest.fixture
def config(tree: dict[str, Any]) -> Config:
    return load(tree)


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Artifact]:
    made = tmp_path / "artifacts"
    add_weights(make_model_folder(made / "merge", "demo"))
    sizes = made / "merge" / "config.json"  # of heads that ONNX Runtime takes
    sizes.write_text(json.dumps({**json.loads(sizes.read_text()), "head_dim": 16}))
    (made / "merge" / "generation_config.json").write_text("{}")
    tokenizer = {
        f"{form}/{file.name}": file.read_bytes()
        for form in ("qnemo", "hf")
        for file in Chat.load(made / "merge").tokenizer_files()
    }
    mapping = {"world_size": 1, "tp_size": 1, "pp_size": 1}
    qnemo = {"dtype": "bfloat16", "mapping": mapping, "quantization": {"quant_algo": "FP8"}}
    exported = {
        **tokenizer,
        "qnemo/config.json": json.dumps(qnemo),
        "hf/hf_quant_config.json": json.dumps({"quantization": {"quant_algo": "FP8"}}),
        "hf/model.safetensors": b"weights",
    }
    return {
        "merge": make_artifact(made, "merge", "hf_checkpoint"),
        "export": make_artifact(made, "export", "exported", files=exported),
    }


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    (folder / "left").mkdir(parents=True)
    (folder / "left" / "over").write_text("of a killed attempt")
    return folder


def with_engine(config: Config, **settings: Any) -> Config:
    return config.model_copy(update={"engine": config.engine.model_copy(update=settings)})


def have_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine("Linux", "3.12", "cpu", 2, 2**34, "580", (GPU,))
    for module in (hardware, build):
        monkeypatch.setattr(module, "inspect_machine", lambda: machine)


class Measured:
    """Stands for ONNX Runtime: what it was asked for, and a proof for each precision.

    same: share of the answers that stay the same, by precision. others: further figures.
    """

    def __init__(self, same: Mapping[str, float], **others: float) -> None:
        self.asked: list[str] = []
        self._same, self._others = same, others

    def __call__(self, job: BuildJob, out: Path, precision: str) -> tuple[Chat, dict[str, float]]:
        self.asked.append(precision)
        (out / "model.onnx").write_text(precision)
        proof = {"exact_loss": 0.0, "loss": 0.0, "agreement": 1.0, "cache_loss": 0.0}
        proof |= {"same_answers": self._same[precision], **self._others}
        return Chat.load(job.checkpoint), proof


@pytest.mark.parametrize(
    ("same", "taken"),
    [({"int8": 1.0}, ["int8"]), ({"int8": 0.97, "fp32": 1.0}, ["int8", "fp32"])],
)
def test_auto_takes_int8_only_where_it_changes_nothing(
    config: Config,
    inputs: dict[str, Artifact],
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    same: dict[str, float],
    taken: list[str],
) -> None:
    measured = Measured(same)
    monkeypatch.setattr(onnxruntime, "build_and_compare", measured)
    outcome = build.run(config, inputs, out)
    assert measured.asked == taken
    assert (out / "model.onnx").read_text() == taken[-1]
    assert outcome.kind == "engine"
    assert outcome.proof["precision"] == taken[-1]
    described = Description.read(out)
    assert (described.runtime, described.precision) == ("onnxruntime", taken[-1])
    assert described.rendering == Chat.load(inputs["merge"].path).sha256
    assert not (out / "left").exists()


DIFFERENT: list[tuple[str, dict[str, float], str]] = [
    ("fp32", {"loss": 1e-5, "exact_loss": 1e-5}, "is not made of the same model"),
    ("int8", {"exact_loss": 1e-4}, "is not made of the same model"),
    ("int8", {"loss": 0.05}, "loses 0.05 of what PyTorch's predictions say"),
    ("int8", {"agreement": 0.9}, "with 90.0% of its likeliest tokens"),
    ("int4", {"loss": float("nan")}, "loses nan"),
    ("int8", {"cache_loss": 0.1}, "predicts otherwise token by token"),
]


@pytest.mark.parametrize(("precision", "figures", "words"), DIFFERENT)
def test_an_engine_that_predicts_otherwise_is_refused_unless_a_reason_is_given(
    config: Config,
    inputs: dict[str, Artifact],
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
    figures: dict[str, float],
    words: str,
) -> None:
    measured = Measured({precision: 1.0}, **figures)
    monkeypatch.setattr(onnxruntime, "build_and_compare", measured)
    chosen = with_engine(config, name="onnxruntime", precision=precision)
    with pytest.raises(ProofFailed, match=f"the {precision} engine .* {words}.*engine.overrule="):
        build.run(chosen, inputs, out)
    outcome = build.run(with_engine(chosen, overrule="only a rehearsal"), inputs, out)
    assert outcome.proof["overruled"]["reason"] == "only a rehearsal"
    assert words in outcome.proof["overruled"]["refusal"]


def test_probes_are_spread_over_the_validation_rows_and_fit_the_engine() -> None:
    rows = [Row([], [n] * 40, [0] * 20 + [1] * 20, "") for n in range(1000)]
    found = build.answer_probes(rows, 30)
    assert len(found) == build.PROBES
    assert all(len(ids) == 30 and at == list(range(19, 29)) for ids, at in found)
    assert [ids[0] for ids, _ in found] == [n * (1000 // build.PROBES) for n in range(len(found))]
    many = [Row([], [1] * 400, [0] + [1] * 399, "") for _ in range(9)]
    assert len(build.answer_probes(many, 400)) == 4  # so many positions
    with pytest.raises(DataError, match="no answer that the engine is compared on"):
        build.answer_probes(rows, 20)
    with pytest.raises(DataError, match="no answer that the engine is compared on"):
        build.answer_probes([], 30)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_input_len": 400, "max_seq_len": 400}, "leaves no room for an answer"),
        ({"max_seq_len": 513}, "more than the 512 positions"),
    ],
)
def test_lengths_that_cannot_be_are_refused(
    config: Config, inputs: dict[str, Artifact], out: Path, settings: dict[str, int], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        build.run(with_engine(config, **settings), inputs, out)


@pytest.mark.parametrize(
    ("name", "words"), [("trtllm", "docker run"), ("vllm", "pip install vllm")]
)
def test_a_runtime_that_is_absent_is_refused_with_what_to_do(
    config: Config, inputs: dict[str, Artifact], out: Path, name: str, words: str
) -> None:
    with pytest.raises(MissingRuntime, match=words):
        build.run(with_engine(config, name=name), inputs, out)


@pytest.mark.parametrize(
    ("installed", "gpu", "taken"),
    [
        (("trtllm", "vllm"), True, "trtllm-fp8-tp1-pp1"),
        (("vllm",), True, "vllm-fp8-tp1-pp1"),
        ((), True, "onnxruntime-int8-tp1-pp1"),
        (("trtllm", "vllm"), False, "onnxruntime-int8-tp1-pp1"),
    ],
)
def test_auto_takes_the_first_profile_that_can_run_and_says_why_not_those_before(
    config: Config,
    inputs: dict[str, Artifact],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    installed: tuple[str, ...],
    gpu: bool,
    taken: str,
) -> None:
    for name, adapter in (("trtllm", trtllm), ("vllm", vllm)):
        reason = None if name in installed else f"no {name} here"
        monkeypatch.setattr(adapter, "missing", lambda reason=reason: reason)
    if gpu:
        have_gpu(monkeypatch)
    hosted = Hosted(config.engine, here=True)
    chosen = build._choose(config, hosted, inputs["merge"].path, inputs["export"].path)
    assert chosen.name == taken
    said = " ".join(capsys.readouterr().err.split())
    assert f"using {taken}" in said
    for name in ("trtllm", "vllm"):
        if name not in installed and gpu and (taken[:6], name) != ("trtllm", "vllm"):
            assert f"not {name}-fp8-tp1-pp1: no {name} here" in said
        if not gpu:
            assert f"not {name}-fp8-tp1-pp1: this machine has no NVIDIA GPU" in said


def test_pytorch_gets_the_merged_model_with_its_profile(
    config: Config, inputs: dict[str, Artifact], out: Path
) -> None:
    build.run(with_engine(config, name="hf", lora_rank=8), inputs, out)
    described = Description.read(out)
    assert (described.runtime, described.precision, described.lora_rank) == ("hf", "fp32", 8)
    assert described.memory_bytes > 0
    merged = inputs["merge"].path
    assert (out / "model.safetensors").read_bytes() == (merged / "model.safetensors").read_bytes()
    assert not (out / "manifest.json").exists()


def test_a_profile_that_is_named_wins(
    config: Config, inputs: dict[str, Artifact], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = Measured({"fp32": 1.0})
    monkeypatch.setattr(onnxruntime, "build_and_compare", measured)
    build.run(with_engine(config, profile="onnxruntime-fp32-tp1-pp1"), inputs, out)
    assert measured.asked == ["fp32"]
    with pytest.raises(
        ConfigError, match=r"engine\.profile=vllm-x does not exist for this model: choose from"
    ):
        build.run(with_engine(config, profile="vllm-x"), inputs, out)


def test_auto_takes_another_engine_for_heads_that_onnxruntime_does_not_take(
    config: Config, inputs: dict[str, Artifact], out: Path
) -> None:
    sizes = inputs["merge"].path / "config.json"
    sizes.write_text(json.dumps({**json.loads(sizes.read_text()), "head_dim": 20}))
    build.run(config, inputs, out)
    assert Description.read(out).runtime == "hf"
    with pytest.raises(ConfigError, match=r"a multiple of 16, and this model's have 20: choose"):
        build.run(with_engine(config, name="onnxruntime"), inputs, out)


def test_too_little_memory_is_refused_with_what_fits(
    config: Config, inputs: dict[str, Artifact], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = Machine("Linux", "3.12", "cpu", 2, 2**28, None, ())
    monkeypatch.setattr(build, "inspect_machine", lambda: small)
    with pytest.raises(ResourceError, match=r"too little; engine\.max_batch_size=\d+ fits"):
        build.run(with_engine(config, name="onnxruntime", max_batch_size=4000), inputs, out)


def test_another_server_is_written_down_with_the_tokenizer(
    config: Config, inputs: dict[str, Artifact], out: Path
) -> None:
    place = {"base_url": "http://10.0.0.5:8000/v1/", "model": "bank"}
    build.run(with_engine(config, name="remote", arguments=place), inputs, out)
    described = Description.read(out)
    assert described.runtime == "remote"
    assert described.settings == {"base_url": "http://10.0.0.5:8000/v1", "model": "bank"}
    assert Chat.load(out).sha256 == described.rendering
    for arguments, words in (
        ({}, "needs engine.arguments.base_url"),
        ({**place, "key": "secret"}, "REMOTE_API_KEY"),
    ):
        with pytest.raises(ConfigError, match=words):
            build.run(with_engine(config, name="remote", arguments=arguments), inputs, out)


def test_vllm_gets_the_checkpoint_and_its_arguments(
    config: Config, inputs: dict[str, Artifact], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    have_gpu(monkeypatch)
    monkeypatch.setattr(vllm, "version", lambda: "0.14.1")
    build.run(with_engine(config, name="vllm"), inputs, out)
    described = Description.read(out)
    assert (described.version, described.precision) == ("0.14.1", "fp8")
    assert described.hardware == {"gpu": "NVIDIA H200", "compute_capability": "9.0"}
    assert described.settings["arguments"]["quantization"] == "modelopt"
    assert (out / "model.safetensors").read_bytes() == b"weights"
    assert not (out / "model.safetensors").is_symlink()


def test_trtllm_runs_its_builder_on_the_qnemo_checkpoint(
    config: Config, inputs: dict[str, Artifact], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fake(checkpoint: Path, out: Path, engine: Any, show: Any) -> dict[str, Any]:
        (out / "engine").mkdir()
        (out / "engine" / "rank0.engine").write_bytes(b"engine")
        command = " ".join(trtllm.build_command(checkpoint, out / "engine", engine))
        return {"version": "1.2.1", "precision": "FP8", "command": command}

    have_gpu(monkeypatch)
    monkeypatch.setattr(trtllm, "missing", lambda: None)
    monkeypatch.setattr(trtllm, "build", fake)
    outcome = build.run(with_engine(config, name="trtllm"), inputs, out)
    assert str(inputs["export"].path / "qnemo") in outcome.proof["command"]
    described = Description.read(out)
    assert (described.runtime, described.version) == ("trtllm", "1.2.1")
    assert described.settings["backend"] == "tensorrt"
    assert described.settings["arguments"] == {"max_batch_size": 16}
    assert Chat.load(out).sha256 == described.rendering


def test_inputs_of_the_wrong_kind_are_refused(
    config: Config, inputs: dict[str, Artifact], out: Path
) -> None:
    with pytest.raises(ArtifactError, match="is a exported, and a hf_checkpoint is needed"):
        build.run(config, {**inputs, "merge": inputs["export"]}, out)


def triton(config: Config, **arguments: Any) -> Config:
    given = {"model": "support", **arguments}
    return with_engine(config, name="triton", arguments=given)


def test_triton_gets_a_repository_around_an_engine_of_ours(
    config: Config, inputs: dict[str, Artifact], out: Path
) -> None:
    made = build.run(triton(config, engine="hf"), inputs, out)
    assert made.proof["behind"] == "hf"
    repository = out / "repository"
    models = {folder.name for folder in repository.iterdir()}
    assert models == {"support", "support_stream", "support_tokens"}
    inside = Description.read(repository / "support_tokens/1/engine")
    outside = Description.read(out)
    assert (inside.runtime, outside.runtime) == ("hf", "triton")
    assert outside.settings["backend"] == "python"


def test_vllms_repository_names_its_checkpoint_where_the_container_has_it(
    config: Config, inputs: dict[str, Artifact], out: Path
) -> None:
    given = triton(config, backend="vllm", mount="/repo", arguments={"enforce_eager": True})
    build.run(given, inputs, out)
    folder = out / "repository/support"
    content = json.loads((folder / "1/model.json").read_text())
    assert content["model"] == "/repo/support/1/checkpoint"
    assert content["enforce_eager"] is True
    assert (folder / "1/checkpoint/hf_quant_config.json").is_file()
    assert 'backend: "vllm"' in (folder / "config.pbtxt").read_text()


def test_tensorrt_llms_repository_says_how_its_engine_is_built(
    config: Config, inputs: dict[str, Artifact], out: Path
) -> None:
    made = build.run(triton(config, backend="tensorrtllm"), inputs, out)
    assert made.proof["engine"] == "not built here"
    script = (out / "build-engine.sh").read_text()
    assert "--checkpoint_dir checkpoint" in script
    assert "--output_dir repository/support_tokens/1/engine" in script
    assert (out / "checkpoint/config.json").is_file()
    config_text = (out / "repository/support_tokens/config.pbtxt").read_text()
    assert '"/models/support_tokens/1/engine"' in config_text
    assert (out / "repository/support_preprocessing/1/tokenizer/tokenizer.json").is_file()


def test_onnxruntimes_repository_has_the_graphs_inputs(
    config: Config, inputs: dict[str, Artifact], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnx
    from onnx import TensorProto, helper

    def write(job: BuildJob, folder: Path, precision: str) -> tuple[Chat, dict[str, float]]:
        ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "length"])
        logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "length", 9])
        graph = helper.make_graph([], "model", [ids], [logits])
        onnx.save(helper.make_model(graph), folder / "model.onnx")
        return Measured({precision: 1.0})(job, folder.parent, precision)

    monkeypatch.setattr(onnxruntime, "build_and_compare", write)
    build.run(triton(config, backend="onnxruntime"), inputs, out)
    text = (out / "repository/support/config.pbtxt").read_text()
    assert 'input { name: "input_ids" data_type: TYPE_INT64 dims: -1 dims: -1 }' in text
    assert 'output { name: "logits" data_type: TYPE_FP32 dims: -1 dims: -1 dims: 9 }' in text


def test_a_backend_that_does_not_take_the_model_is_refused(
    config: Config, inputs: dict[str, Artifact], out: Path
) -> None:
    given = with_engine(triton(config, backend="vllm"), profile="vllm-int4_awq-tp1-pp1")
    with pytest.raises(ConfigError, match="engine=vllm does not take this model"):
        build.run(given, inputs, out)
