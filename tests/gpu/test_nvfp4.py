"""NVFP4 on a GPU: simulated in calibration, packed, and packed the same where there is no GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.core.artifact import Artifact, Outcome
from pipeline.models.architecture import read_shape
from pipeline.models.hf_model import WeightReader
from pipeline.optimization import ptq as modelopt
from pipeline.optimization.dequantize import difference
from pipeline.optimization.exported_reader import UnifiedWeights
from pipeline.stages import export, quantize
from tests.integration.quantization_case import artifact_of, configure, make_inputs


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    return make_inputs(tmp_path_factory.mktemp("artifacts"))


@pytest.fixture(scope="module")
def quantized(
    inputs: dict[str, Artifact], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Outcome, Artifact]:
    out = tmp_path_factory.mktemp("quantized")
    outcome = quantize.run(configure("quantize=nvfp4"), inputs, out)
    return outcome, artifact_of(out, tmp_path_factory.mktemp("made"), "quantize", outcome.kind)


@pytest.fixture(scope="module")
def exported(
    inputs: dict[str, Artifact],
    quantized: tuple[Outcome, Artifact],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Outcome, Path]:
    out = tmp_path_factory.mktemp("exported")
    config = configure("quantize=nvfp4", "export.tensor_parallel=2")
    return export.run(config, {**inputs, "quantize": quantized[1]}, out), out


def test_it_opens_again_with_the_same_outputs(quantized: tuple[Outcome, Artifact]) -> None:
    proof = quantized[0].proof["nvfp4"]
    assert proof["reload_difference"] == 0
    # Half the distance between neighbours of four bits, and scales of three bits of mantissa.
    assert all(0.08 < error < 0.12 for error in proof["weight_error"]["by_layer"].values())


def test_both_forms_hold_the_source_weights(exported: tuple[Outcome, Path]) -> None:
    outcome, folder = exported
    assert len(list((folder / "qnemo").glob("rank*.safetensors"))) == 2
    for form in ("qnemo", "hf"):
        proof = outcome.proof[form]
        assert proof["tensors"] == 2 * 9 + 3
        assert 0.08 < proof["largest_error"] < 0.12


def test_what_is_packed_is_what_was_simulated(
    inputs: dict[str, Artifact],
    quantized: tuple[Outcome, Artifact],
    exported: tuple[Outcome, Path],
) -> None:
    model = modelopt.load(quantized[1].path / "nvfp4")
    shape = read_shape(inputs["merge"].path)
    compared = 0
    with (
        WeightReader(inputs["merge"].path) as source,
        UnifiedWeights(exported[1] / "hf", source, shape) as written,
        torch.no_grad(),
    ):
        for name, module in model.named_modules():
            # The others share their scale with the layers beside them once they are exported.
            if name.endswith(("o_proj", "down_proj")):
                packed = written.tensor(f"{name}.weight")
                assert packed is not None
                simulated = module.weight_quantizer(module.weight)
                # 0.007 on an H200, where rounding to four bits is 0.095: values half-way between
                # two of NVFP4's may go either way.
                assert difference(simulated, packed)["error"] < 2**-6, name
                compared += 1
    assert compared == 4


def test_a_machine_without_a_gpu_packs_the_same(
    inputs: dict[str, Artifact],
    quantized: tuple[Outcome, Artifact],
    exported: tuple[Outcome, Path],
    tmp_path: Path,
) -> None:
    code = (
        "import pathlib, sys; from pipeline.core.artifact import open_artifact; "
        "from pipeline.stages import export; "
        "from tests.integration.quantization_case import configure; "
        "merge, quantize, out = map(pathlib.Path, sys.argv[1:]); "
        "config = configure('quantize=nvfp4', 'export.tensor_parallel=2'); "
        "made = {'merge': open_artifact(merge), 'quantize': open_artifact(quantize)}; "
        "export.run(config, made, out)"
    )
    folders = (inputs["merge"].path, quantized[1].path, tmp_path)
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", code, *map(str, folders)]
    subprocess.run(command, env=environment, check=True, timeout=300)
    files = [f.relative_to(exported[1]) for f in exported[1].rglob("*.safetensors")]
    assert len(files) == 3
    for file in files:
        on_gpu, on_cpu = load_file(exported[1] / file), load_file(tmp_path / file)
        assert on_gpu.keys() == on_cpu.keys()
        for name, tensor in on_gpu.items():
            if tensor.dtype == torch.float32:  # scales: a GPU divides with another last bit
                torch.testing.assert_close(tensor, on_cpu[name], rtol=1e-6, atol=0)
            else:
                ours, theirs = (t.flatten().view(torch.uint8) for t in (tensor, on_cpu[name]))
                assert (ours == theirs).float().mean() > 0.999, name
