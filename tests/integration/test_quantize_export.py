"""Quantize, export and evaluate on a small random Llama, with the real ModelOpt."""

import asyncio
import json
import os
import pickle
import shutil
import subprocess
import sys
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.core.artifact import Artifact, Outcome, hash_files
from pipeline.core.errors import (
    ArtifactError,
    MissingRuntime,
    PipelineError,
    ProofFailed,
)
from pipeline.core.paths import ROOT
from pipeline.data.dataset import Row, read_split
from pipeline.engines.base import Sampling
from pipeline.engines.batching.scheduler import BatchingEngine
from pipeline.engines.hf.session import HfSession, is_quantized
from pipeline.models import hf_model
from pipeline.models.architecture import read_shape
from pipeline.models.chat.renderer import Chat
from pipeline.models.files import weight_files
from pipeline.optimization import logit_probes
from pipeline.optimization import ptq as modelopt
from pipeline.optimization.scale_checks import check_scales
from pipeline.stages import evaluate, export, quantize
from tests.integration.quantization_case import artifact_of, configure, make_inputs, make_model
from tests.made_artifacts import make_artifact

FORMATS = ("fp8", "int8_sq", "int4_awq", "w4a8_awq", "none")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    return make_inputs(tmp_path_factory.mktemp("artifacts"))


@pytest.fixture(scope="module")
def quantized(
    inputs: dict[str, Artifact], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Outcome, Artifact]:
    out = tmp_path_factory.mktemp("quantized")
    config = configure(f"quantize.compare=[{','.join(FORMATS[1:])}]")
    outcome = quantize.run(config, inputs, out)
    made = tmp_path_factory.mktemp("made")
    settings = {"quantize": config.quantize.model_dump()}
    return outcome, artifact_of(out, made, "quantize", outcome.kind, settings)


@pytest.mark.parametrize("name", ["fp8", "int4_awq"])
def test_a_quantized_folder_is_served_with_the_tokens_of_generate(
    quantized: tuple[Outcome, Artifact], name: str
) -> None:
    folder = quantized[1].path / name
    chat = Chat.load(folder)
    prompts = [chat.prompt([{"role": "user", "content": text}]) for text in ("Hello", "Bye now")]

    async def read(engine: BatchingEngine, prompt: list[int]) -> list[int]:
        how = Sampling(12, temperature=0, stop_ids=frozenset(chat.stop_ids))
        return [token.id async for tokens in engine.generate(prompt, how) for token in tokens]

    async def scenario() -> list[list[int]]:
        session = HfSession(folder, slots=2, max_seq_len=64)
        engine = BatchingEngine(session, max_input_len=48, max_queue=2)
        try:
            return await asyncio.gather(*(read(engine, prompt) for prompt in prompts))
        finally:
            engine.close()

    assert is_quantized(folder)
    model = modelopt.load(folder).float()
    expected = [
        hf_model.greedy(model, p, max_new_tokens=12, stop_ids=chat.stop_ids) for p in prompts
    ]
    assert asyncio.run(scenario()) == expected


def test_every_format_opens_again_with_the_same_outputs(
    quantized: tuple[Outcome, Artifact],
) -> None:
    outcome, artifact = quantized
    assert list(outcome.proof) == list(FORMATS)
    for name in FORMATS:
        assert outcome.proof[name]["reload_difference"] == 0
        assert (artifact.path / name / "tokenizer.json").is_file()
    kl = {name: outcome.metrics[f"kl/{name}"] for name in FORMATS}
    assert kl["none"] == 0
    assert 0 < kl["int8_sq"] < kl["int4_awq"]
    assert 0 < kl["fp8"] < kl["w4a8_awq"]
    size = {name: outcome.metrics[f"bytes/{name}"] for name in FORMATS}
    assert size["int4_awq"] < size["fp8"] < size["none"]
    errors = outcome.proof["fp8"]["weight_error"]["by_layer"]
    assert len(errors) == 14  # seven linear layers in each of two; the output layer is left
    assert all(0.01 < error < 0.05 for error in errors.values())


APART = """
import sys
from pathlib import Path
from pipeline.core.artifact import open_artifact
from pipeline.stages import quantize
from tests.integration.quantization_case import configure
place = Path(sys.argv[1])
inputs = {name: open_artifact(place / name) for name in ("prepare", "merge")}
quantize.run(configure("quantize.compare=[int4_awq,w4a8_awq]"), inputs, Path(sys.argv[2]))
"""


def test_another_process_in_another_place_writes_the_same_files(
    inputs: dict[str, Artifact], quantized: tuple[Outcome, Artifact], tmp_path: Path
) -> None:
    elsewhere = shutil.copytree(inputs["merge"].path.parent, tmp_path / "another/place")
    subprocess.run(
        [sys.executable, "-c", APART, str(elsewhere), str(tmp_path / "out")],
        env={**os.environ, "PYTHONHASHSEED": "7"}, cwd=ROOT, check=True, timeout=300,
    )  # fmt: skip
    here = quantized[1].manifest.files
    found = {
        name: entry
        for name, entry in hash_files(tmp_path / "out").items()
        if name.split("/")[0] in FORMATS
    }
    assert {name.split("/")[0] for name in found} == {"fp8", "int4_awq", "w4a8_awq"}
    assert {name for name, entry in found.items() if entry != here[name]} == set()


@pytest.fixture(scope="module")
def calibrated(
    inputs: dict[str, Artifact],
    quantized: tuple[Outcome, Artifact],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Artifact]:
    """What to export each format from.

    NVFP4 comes from ModelOpt alone: the stage would simulate it, which needs a GPU; its scales are
    the largest values seen, which does not.
    """
    from pipeline.optimization import ptq as modelopt

    source = inputs["merge"].path
    rows = read_split(inputs["prepare"].path, "train")
    batches = quantize.calibration_batches(rows, count=16, batch_size=8, max_length=64, seed=0)
    model = modelopt.quantize(
        hf_model.load_model(source, dtype="float32"), "nvfp4", batches, kv_cache="none", exclude=()
    )
    out = tmp_path_factory.mktemp("nvfp4")
    modelopt.save(model, out / "nvfp4", source)
    nvfp4 = artifact_of(out, tmp_path_factory.mktemp("made"), "quantize", "quantized")
    return {**dict.fromkeys(FORMATS, quantized[1]), "nvfp4": nvfp4}


@pytest.mark.parametrize(("tensor", "pipeline"), [(1, 1), (2, 1), (1, 2), (2, 2)])
@pytest.mark.parametrize("name", [*FORMATS, "nvfp4"])
def test_both_exports_hold_the_source_weights(
    inputs: dict[str, Artifact],
    calibrated: dict[str, Artifact],
    tmp_path: Path,
    name: str,
    tensor: int,
    pipeline: int,
) -> None:
    config = configure(
        f"quantize={name}",
        f"export.tensor_parallel={tensor}",
        f"export.pipeline_parallel={pipeline}",
    )
    outcome = export.run(config, {**inputs, "quantize": calibrated[name]}, tmp_path)
    ranks = sorted(file.name for file in (tmp_path / "qnemo").glob("*.safetensors"))
    assert ranks == [f"rank{rank}.safetensors" for rank in range(tensor * pipeline)]
    assert outcome.proof["qnemo"]["tensors"] == 2 * 9 + 3
    assert outcome.metrics["largest_excess/hf"] < 0.05
    claimed = json.loads((tmp_path / "hf" / "config.json").read_text()).get("quantization_config")
    assert (claimed is None) == (name == "none")
    chat = Chat.load(tmp_path / "qnemo")
    assert chat.sha256 == Chat.load(inputs["merge"].path).sha256


def in_fp8(source: Path, folder: Path) -> dict[str, Artifact]:
    """What export takes of a model."""
    model = modelopt.quantize(
        hf_model.load_model(source, dtype="float32"),
        "fp8",
        [[[5, 6, 7]]],
        kv_cache="none",
        exclude=(),
    )
    modelopt.save(model, folder / "quantized" / "fp8", source)
    return {
        "merge": artifact_of(source, folder / "made", "merge", "hf_checkpoint"),
        "quantize": artifact_of(folder / "quantized", folder / "made", "quantize", "quantized"),
    }


def test_biases_and_a_tied_output_layer_are_exported(tmp_path: Path) -> None:
    source = make_model(tmp_path / "qwen2", "Qwen2", tie_word_embeddings=True)
    made = in_fp8(source, tmp_path)
    config = configure("export.tensor_parallel=2", "export.pipeline_parallel=2")
    outcome = export.run(config, made, tmp_path / "exported")
    for form in ("qnemo", "hf"):
        errors = {n: f["error"] for n, f in outcome.proof[form]["by_tensor"].items()}
        assert len([name for name in errors if name.endswith(".bias")]) == 6
        assert all(error == 0 for name, error in errors.items() if "_proj.weight" not in name)


def test_one_model_is_held_at_a_time_and_none_while_weights_are_compared(
    inputs: dict[str, Artifact],
    calibrated: dict[str, Artifact],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from pipeline.optimization import ptq as modelopt

    load, opened = modelopt.load, []

    def load_alone(folder: Path) -> Any:
        assert not any(model() for model in opened)
        model = load(folder)
        opened.append(weakref.ref(model))
        return model

    monkeypatch.setattr(modelopt, "load", load_alone)
    export.run(configure(), {**inputs, "quantize": calibrated["fp8"]}, tmp_path)
    assert [model() for model in opened] == [None, None]


def test_a_quantized_cache_is_exported_only_when_asked_for(
    inputs: dict[str, Artifact], tmp_path: Path
) -> None:
    config = configure("quantize.kv_cache=fp8", "quantize.compare=[]")
    for stage in ("quantize", "export"):
        (tmp_path / stage).mkdir()
    outcome = quantize.run(config, inputs, tmp_path / "quantize")
    made = artifact_of(tmp_path / "quantize", tmp_path / "made", "quantize", outcome.kind)
    export.run(config, {**inputs, "quantize": made}, tmp_path / "export")
    qnemo = json.loads((tmp_path / "export" / "qnemo" / "config.json").read_text())
    assert qnemo["quantization"]["kv_cache_quant_algo"] == "FP8"


@pytest.mark.parametrize("folder", ["qnemo", "hf"])
def test_a_wrong_scale_of_the_cache_is_found(
    inputs: dict[str, Artifact], tmp_path: Path, folder: str
) -> None:
    config = configure("quantize.kv_cache=fp8", "quantize.compare=[]")
    (tmp_path / "quantize").mkdir()
    outcome = quantize.run(config, inputs, tmp_path / "quantize")
    made = artifact_of(tmp_path / "quantize", tmp_path / "made", "quantize", outcome.kind)
    (tmp_path / "export").mkdir()
    export.run(config, {**inputs, "quantize": made}, tmp_path / "export")
    damage = change_all(("k_cache_scaling_factor", "v_scale"), lambda t: t * 2)
    damage(tmp_path / "export" / folder)
    folders = {name: tmp_path / "export" / name for name in ("qnemo", "hf")}
    shape = read_shape(inputs["merge"].path)
    quantized = tmp_path / "quantize" / "fp8"
    assert len(check_scales(quantized, folders, shape, "fp8")) == 2  # of two layers


@pytest.mark.parametrize("format", ["fp8", "int4_awq"])
@pytest.mark.parametrize("kept", [True, False])
def test_a_layer_that_is_left_out_must_be_a_copy(
    inputs: dict[str, Artifact], tmp_path: Path, format: str, kept: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from pipeline.optimization import export as modelopt_export

    config = configure(
        f"quantize={format}", "quantize.exclude=[lm_head,o_proj]", "quantize.compare=[]"
    )
    for stage in ("quantize", "export"):
        (tmp_path / stage).mkdir()
    outcome = quantize.run(config, inputs, tmp_path / "quantize")
    made = artifact_of(tmp_path / "quantize", tmp_path / "made", "quantize", outcome.kind)
    write = modelopt_export.write_qnemo

    def write_wrongly(quantized: Path, source: Path, out: Path, **ranks: int) -> None:
        write(quantized, source, out, **ranks)
        change_all(("dense.weight",), lambda t: t * 1.02)(out)

    if not kept:
        monkeypatch.setattr(modelopt_export, "write_qnemo", write_wrongly)
    with nullcontext() if kept else pytest.raises(ProofFailed, match="o_proj"):
        export.run(config, {**inputs, "quantize": made}, tmp_path / "export")


def test_a_model_without_generation_config_is_exported(tmp_path: Path) -> None:
    source = make_model(tmp_path / "model")
    (source / "generation_config.json").unlink()
    made = in_fp8(source, tmp_path)
    export.run(configure(), made, tmp_path / "exported")
    for form in ("qnemo", "hf"):
        found = json.loads((tmp_path / "exported" / form / "generation_config.json").read_text())
        assert (found["bos_token_id"], found["eos_token_id"]) == (0, 4)


def test_evaluation_compares_every_model(
    inputs: dict[str, Artifact], quantized: tuple[Outcome, Artifact], tmp_path: Path
) -> None:
    config = configure(f"model.path={inputs['merge'].path}")
    outcome = evaluate.run(config, {**inputs, "quantize": quantized[1]}, tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    assert set(report["models"]) == {"base", "tuned", *FORMATS}
    assert report["questions"] == 12
    models = report["models"]
    assert models["tuned"]["answer_loss"] == models["none"]["answer_loss"]
    assert models["tuned"]["answer_loss"] != models["int4_awq"]["answer_loss"]
    predictions = (tmp_path / "predictions.jsonl").read_text().splitlines()
    assert len(predictions) == 12
    assert set(json.loads(predictions[0])["answers"]) == set(models)
    assert (tmp_path / "accuracy.png").is_file()
    # A random model answers nothing, which is what the gate is for.
    said = "evaluate.gate.learned: the exact match of the tuned model is 0.0% on 12 questions"
    assert said in str(outcome.failure)
    page = (tmp_path / "report.html").read_text()
    assert "Gate refused" in page
    assert "http" not in page


def test_answers_of_a_quantized_model_do_not_depend_on_the_batch(
    inputs: dict[str, Artifact], quantized: tuple[Outcome, Artifact]
) -> None:
    from pipeline.evaluation import generation
    from pipeline.optimization import ptq as modelopt

    model = modelopt.load(quantized[1].path / "w4a8_awq")
    questions = [evaluate.question(row) for row in read_split(inputs["prepare"].path, "test")]
    options: dict[str, Any] = {"stop_ids": [4], "max_new_tokens": 6}
    whole = generation.answer(model, questions, batch_size=12, **options)
    modelopt.fold_weights(model)
    for size in (1, 5):
        again = generation.answer(model, questions, batch_size=size, **options)
        assert [a.ids for a in again] == [a.ids for a in whole]


def change_a_tensor(
    folder: Path, endings: tuple[str, ...], change: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    """Of the first that ends so."""
    file = next(iter(sorted(folder.glob("*.safetensors"))))
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith(endings))
    tensors[name] = change(tensors[name]).contiguous()
    save_file(tensors, file, metadata={"format": "pt"})


SCALES = ("weights_scaling_factor", "weight_scale")


def change_all(
    endings: tuple[str, ...], change: Callable[[torch.Tensor], torch.Tensor]
) -> Callable[[Path], None]:
    """Tensors of all files that end so."""

    def damage(folder: Path) -> None:
        for file in folder.glob("*.safetensors"):
            tensors = load_file(file)
            for name in tensors:
                if name.endswith(endings):
                    tensors[name] = change(tensors[name])
            save_file(tensors, file, metadata={"format": "pt"})

    return damage


def change_config(**changes: Any) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        file = folder / "config.json"
        config = json.loads(file.read_text())
        # qnemo has other names for the same.
        names = {"rope_theta": "rotary_base", "rope_scaling": "rotary_scaling"}
        mine = {names[n] if folder.name == "qnemo" else n: v for n, v in changes.items()}
        file.write_text(json.dumps(config | mine))

    return damage


INPUTS = ("activation_scaling_factor", "input_scale")
LONGER = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
DAMAGES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "every scale a fifth too large": ("int4_awq", change_all(SCALES, lambda t: t * 1.2)),
    "every scale a twentieth too small": ("w4a8_awq", change_all(SCALES, lambda t: t * 0.95)),
    "scales of inputs": ("fp8", change_all(INPUTS, lambda t: t * 8)),
    "scales of int8 inputs": ("int8_sq", change_all(INPUTS, lambda t: t * 1.01)),
    "scales of NVFP4 inputs": ("nvfp4", change_all(INPUTS, lambda t: t / 6)),
    "the rotary base": ("fp8", change_config(rope_theta=1234.0)),
    "the rotary scaling": ("none", change_config(rope_scaling=LONGER)),
    # The direction stays, the size does not.
    "a scale twice as large": ("fp8", lambda f: change_a_tensor(f, SCALES, lambda t: t * 2)),
    "no tokenizer": ("fp8", lambda f: (f / "tokenizer.json").unlink()),
    "halves of bytes exchanged": (
        "nvfp4",
        lambda f: change_a_tensor(f, ("proj.weight",), lambda t: t >> 4 | t << 4),
    ),
    "scales of the next block": (
        "nvfp4",
        lambda f: change_a_tensor(
            f, SCALES, lambda t: t.view(torch.uint8).roll(1, dims=1).view(t.dtype)
        ),
    ),
}


@pytest.mark.parametrize("case", DAMAGES)
@pytest.mark.parametrize("writer", ["write_qnemo", "write_unified_hf"])
def test_a_wrong_export_is_found(
    inputs: dict[str, Artifact],
    calibrated: dict[str, Artifact],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    writer: str,
    case: str,
) -> None:
    from pipeline.optimization import export as modelopt_export

    format, damage = DAMAGES[case]
    write = getattr(modelopt_export, writer)

    def write_wrongly(quantized: Path, source: Path, out: Path, **ranks: int) -> None:
        write(quantized, source, out, **ranks)
        damage(out)

    monkeypatch.setattr(modelopt_export, writer, write_wrongly)
    with pytest.raises(ProofFailed):
        export.run(
            configure(f"quantize={format}"), {**inputs, "quantize": calibrated[format]}, tmp_path
        )


def test_weights_that_calibration_keeps_are_not_written_again(
    inputs: dict[str, Artifact], quantized: tuple[Outcome, Artifact]
) -> None:
    source = (inputs["merge"].path / "model.safetensors").read_bytes()
    fp8, scaled = (quantized[1].path / name for name in ("fp8", "int8_sq"))
    assert (fp8 / "source-model.safetensors").read_bytes() == source
    assert {file.name for file in weight_files(fp8)} == {
        "source-model.safetensors",
        "quantizers.safetensors",
    }
    assert [file.name for file in weight_files(scaled)] == ["model.safetensors"]


def test_logits_at_positions_are_those_of_the_whole(
    inputs: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = hf_model.load_model(inputs["merge"].path, dtype="float32")
    rows = [([5, 9, 3, 7, 8, 2], [1, 4]), ([8, 2], [0]), ([4] * 9, []), ([6, 1, 7], [2, 0])]
    whole = torch.cat([hf_model.logits(model, ids)[at] for ids, at in rows])
    for tokens in (1, 12, 100):  # one row at a time, two, all
        monkeypatch.setattr(logit_probes, "_TOKENS", tokens)
        torch.testing.assert_close(logit_probes.logits_at(model, rows), whole)


@pytest.mark.parametrize("format", ["fp8", "int8_sq", "int4_awq", "w4a8_awq"])
def test_values_collected_without_waiting_are_modelopts(
    inputs: dict[str, Artifact], format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from modelopt.torch.quantization import utils

    draw = torch.Generator().manual_seed(0)
    batches = [torch.randint(0, 384, (2, 24), generator=draw).tolist() for _ in range(3)]
    looked = []
    reduce = utils.reduce_amax
    monkeypatch.setattr(
        utils, "reduce_amax", lambda *given, **named: (looked.append(1), reduce(*given, **named))[1]
    )
    states, counts = [], []
    for collecting in (modelopt.quick_maxima, nullcontext):
        monkeypatch.setattr(modelopt, "quick_maxima", collecting)
        model = hf_model.load_model(inputs["merge"].path, dtype="float32")
        looked.clear()
        modelopt.quantize(model, format, batches, kv_cache="fp8", exclude=())
        counts.append(len(looked))
        states.append(model.state_dict())
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        torch.testing.assert_close(value, states[1][name], rtol=0, atol=0, msg=name)
    if format == "fp8":
        assert counts[0] == counts[1] - 2 * 2 * 7  # of weights, in two later batches


def test_few_positions_are_compared_where_answers_are_long() -> None:
    rows = [Row([], [1] * 900, [0] * 100 + [1] * 800, "") for _ in range(40)]
    probes = quantize._probes(rows)
    assert len(probes) == quantize.PROBES
    at = [place for _, places in probes for place in places]
    assert 0.9 * quantize.POSITIONS < len(at) <= quantize.POSITIONS
    assert min(at) == 99
    assert max(at) > 870
    short = quantize._probes([Row([], [1, 2, 3, 4], [0, 0, 1, 1], "")])
    assert short == [([1, 2, 3, 4], [1, 2])]


def test_a_state_that_is_lost_is_found(
    inputs: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.optimization import ptq as modelopt

    save = modelopt.save

    def save_without_state(model: Any, folder: Path, *source: Path) -> None:
        save(model, folder, *source)
        (folder / "modelopt_state.pth").unlink()

    monkeypatch.setattr(modelopt, "save", save_without_state)
    with pytest.raises(ProofFailed, match="fp8 opens again with logits that differ"):
        quantize.run(configure("quantize.compare=[]"), inputs, tmp_path)


def test_a_format_that_was_not_calibrated_is_refused(
    inputs: dict[str, Artifact], tmp_path: Path
) -> None:
    empty = make_artifact(tmp_path, "quantize", "quantized")
    with pytest.raises(ArtifactError, match="stage=quantize quantize=int8_sq"):
        export.run(configure("quantize=int8_sq"), {**inputs, "quantize": empty}, tmp_path)


class Harm:
    """Pickles as a call that leaves a file behind."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.file),)


def test_a_state_with_code_in_it_is_not_opened(
    quantized: tuple[Outcome, Artifact], tmp_path: Path
) -> None:
    from pipeline.optimization import ptq as modelopt

    folder = tmp_path / "fp8"
    folder.mkdir()
    for file in (quantized[1].path / "fp8").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    torch.save(Harm(tmp_path / "harm"), folder / "modelopt_state.pth", pickle_module=pickle)
    with pytest.raises(ArtifactError, match="holds objects that ModelOpt does not write"):
        modelopt.load(folder)
    assert not (tmp_path / "harm").exists()


def test_nvfp4_asks_for_a_gpu(
    inputs: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(MissingRuntime, match="needs a GPU"):
        quantize.run(configure("quantize=nvfp4"), inputs, tmp_path)


def test_outputs_that_are_not_finite_are_an_error(
    inputs: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.models import hf_model

    load_model = hf_model.load_model

    def broken(folder: Path, *, dtype: str) -> Any:
        model = load_model(folder, dtype=dtype)
        model.model.norm.weight.data[0] = float("inf")
        return model

    monkeypatch.setattr(hf_model, "load_model", broken)
    with pytest.raises(PipelineError, match="not finite"):
        quantize.run(configure("quantize.compare=[]"), inputs, tmp_path)


def test_neither_nemo_nor_megatron_is_imported() -> None:
    code = (
        "import sys; from pipeline.stages import quantize, export, evaluate;"
        "assert 'torch' not in sys.modules;"
        "from pipeline.evaluation import generation; from pipeline.models import hf_model;"
        "from pipeline.optimization import export as written, ptq;"
        "ptq.modelopt(); from transformers import AutoModelForCausalLM;"
        "print([m for m in ('nemo', 'megatron', 'sklearn', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_type_that_config_does_not_say_is_the_weights(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model")
    assert modelopt.own_dtype(folder) == "bfloat16"
    file = folder / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({k: v for k, v in config.items() if "dtype" not in k}))
    assert modelopt.own_dtype(folder) == "bfloat16"
