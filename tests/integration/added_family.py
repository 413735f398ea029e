"""A made-up model family that is built as Llama, added through its table alone.

    python -m tests.integration.added_family FOLDER

Run by test_added_records.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

from pipeline.core.errors import DataError
from pipeline.models.families import FAMILIES
from pipeline.models.families.llama import LLAMA
from tests.integration.added_records import run_commands

FAMILIES.add(LLAMA.named("other", "Other", "OtherForCausalLM"))
REASON = "its layers have no names in TensorRT-LLM: serve the merged model with engine=hf"
FAMILIES.add(LLAMA.named("closed", "Closed", "ClosedForCausalLM", refused={"export": REASON}))


def run_stages(folder: Path) -> None:
    from pipeline.stages import export, import_, merge, quantize
    from tests.integration.quantization_case import artifact_of, configure, make_inputs

    inputs = make_inputs(folder, architectures=["OtherForCausalLM"])
    config = configure(
        "quantize.format=int8_sq", "quantize.compare=[]", f"model.path={inputs['merge'].path}"
    )
    for stage in ("import", "merge", "quantize", "export"):
        (folder / stage).mkdir()

    outcome = import_.run(config, {}, folder / "import")
    assert outcome.proof["shape"]["family"] == "other"
    imported = artifact_of(folder / "import", folder / "made", "import", outcome.kind)
    outcome = merge.run(config, {"import": imported, "finetune": imported}, folder / "merge")
    merged = artifact_of(folder / "merge", folder / "tuned", "merge", outcome.kind)

    inputs["merge"] = merged
    outcome = quantize.run(config, inputs, folder / "quantize")
    inputs["quantize"] = artifact_of(folder / "quantize", folder / "made", "quantize", outcome.kind)
    outcome = export.run(config, inputs, folder / "export")
    assert outcome.proof["qnemo"]["tensors"] == outcome.proof["hf"]["tensors"] == 2 * 9 + 3
    qnemo, unified = (
        json.loads((folder / "export" / form / "config.json").read_text())
        for form in ("qnemo", "hf")
    )
    assert qnemo["architecture"] == "LlamaForCausalLM"
    assert unified["architectures"] == ["OtherForCausalLM"]


def refused_alike(folder: Path) -> None:
    """What a family cannot go through is refused by plan and by the stage in the same words."""
    from pipeline.models.architecture import read_shape
    from pipeline.optimization.settings_checks import check_export
    from pipeline.planner.plan import make_plan
    from tests.integration.quantization_case import configure

    config = configure(f"model.path={folder}", "quantize.compare=[]")
    shape = replace(read_shape(folder), family="closed")
    said = []
    for refuse in (lambda: check_export(config, shape), lambda: make_plan(config)):
        try:
            refuse()
        except DataError as error:
            said.append(str(error))
    assert said == [f"stage=export does not take Closed models: {REASON}"] * 2, said


def main(folder: Path) -> None:
    from tests.unit.model_folders import add_random_weights, make_model_folder

    # Groups of 128, so that every format that is compared by default fits.
    sizes = {"hidden_size": 128, "intermediate_size": 256}
    model = make_model_folder(folder / "other", "demo")
    add_random_weights(model, architectures=["OtherForCausalLM"], **sizes)
    named = ("model=local", "model.name=other", f"model.path={model}")
    shown = run_commands(folder, *named)
    assert "other, " in shown["doctor"]
    closed = make_model_folder(folder / "closed", "demo")
    add_random_weights(closed, architectures=["ClosedForCausalLM"], **sizes)
    refused_alike(closed)
    run_stages(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
