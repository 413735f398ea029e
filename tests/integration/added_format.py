"""A made-up weight format, added through its table alone; run by test_added_records.

    python -m tests.integration.added_format FOLDER

Weights are 8-bit integers with one scale per output, activations stay as they are. ModelOpt 0.37
has no configuration of this name, and writes the name of SmoothQuant's algorithm.
"""

import json
import sys
from pathlib import Path

from pipeline.optimization.formats import FORMATS, Format, Storage
from tests.integration.added_records import run_commands

ADDED = FORMATS.add(
    Format(
        name="int8_wo",
        title="INT8 weight-only",
        modelopt={
            "quant_cfg": {
                "*weight_quantizer": {"num_bits": 8, "axis": 0},
                "*input_quantizer": {"enable": False},
                "default": {"enable": False},
            },
            "algorithm": "max",
        },
        storage=Storage(
            "W8A16", "int8", "I8", "I8", scale="row", modelopt_algorithm="W8A8_SQ_PER_CHANNEL"
        ),
        bytes_per_weight=1.0,
        max_drop=0.01,
        keeps_weights=True,
        computes_on=(7, 5),
        forms=("hf",),
    )
)


def run_stages(folder: Path) -> None:
    from safetensors import safe_open

    from pipeline.stages import evaluate, export, quantize
    from tests.integration.quantization_case import artifact_of, configure, make_inputs

    inputs = make_inputs(folder)
    config = configure(
        "quantize.format=int8_wo", "quantize.compare=[]", f"model.path={inputs['merge'].path}"
    )
    for stage in ("quantize", "evaluate", "export"):
        (folder / stage).mkdir()
    outcome = quantize.run(config, inputs, folder / "quantize")
    facts = outcome.proof["int8_wo"]
    assert facts["reload_difference"] == 0
    assert 0 < facts["weight_error"]["mean"] < 0.02
    settings = {"quantize": config.quantize.model_dump()}
    inputs["quantize"] = artifact_of(
        folder / "quantize", folder / "made", "quantize", "quantized", settings
    )

    report = evaluate.run(config, inputs, folder / "evaluate").proof
    assert "int8_wo" in report["models"]

    outcome = export.run(config, inputs, folder / "export")
    assert [path.name for path in (folder / "export").iterdir()] == ["hf"]
    assert 0 < outcome.proof["hf"]["largest_error"] < 0.02
    assert outcome.proof["hf"]["largest_excess"] < 0.005
    claimed = json.loads((folder / "export/hf/config.json").read_text())["quantization_config"]
    assert claimed["quant_algo"] == "W8A16"
    with safe_open(folder / "export/hf/model.safetensors", framework="np") as tensors:
        layer = "model.layers.0.mlp.up_proj"
        assert tensors.get_slice(f"{layer}.weight").get_dtype() == "I8"
        assert tensors.get_slice(f"{layer}.weight_scale").get_shape() == [256]


def main(folder: Path) -> None:
    shown = run_commands(folder, "quantize.format=int8_wo")
    assert "vllm-int8_wo-tp1-pp1" in shown["profiles"]
    run_stages(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
