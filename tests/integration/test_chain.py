"""The whole chain by the command line, on the bundled data and model, each stage a process."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.core.artifact import open_artifact
from pipeline.core.paths import ROOT
from pipeline.deployment.store.folder import Folder
from pipeline.deployment.store.transfer import pull, read_bundle
from pipeline.orchestration import dvc_files
from pipeline.orchestration.effects import is_read

CHAIN = (
    "prepare import finetune merge quantize evaluate export build benchmark register index".split()
)
# Few steps and one format: what is tested is that the stages fit, not how good the model gets.
SETTINGS = [
    "tracking.enabled=false", "finetune.max_steps=3", "finetune.warmup_steps=1",
    "finetune.global_batch_size=4", "finetune.micro_batch_size=4", "quantize.compare=[]",
    "evaluate.max_new_tokens=4", "evaluate.gate.learned=null", "evaluate.gate.reached=null",
    "evaluate.gate.format.margin=1", "evaluate.gate.served.margin=1",
    "engine=onnxruntime", "engine.precision=fp32",
    "benchmark.requests=4", "benchmark.max_tokens=4", "benchmark.concurrency=[2]",
]  # fmt: skip


def command(folder, stage, *overrides):
    # A stage takes the settings that it reads, and refuses those of later ones. The benchmark asks
    # as the evaluation did.
    given = [
        word
        for word in overrides
        if is_read(stage, word.partition("=")[0])
        or (stage == "benchmark" and word.startswith("evaluate."))
    ]
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", f"stage={stage}", f"artifacts={folder}", *given],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done.returncode, done.stderr


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chain")
    for stage in CHAIN:
        code, said = command(folder, stage, *SETTINGS, f"register.store={folder / '.store'}")
        assert code == 0, f"{stage}: {said}"
        assert "Warning" not in said, said
    return folder


def test_every_artifact_names_the_content_it_came_from(chain):
    artifacts = {stage: open_artifact(chain / stage) for stage in CHAIN}
    kinds = [a.kind for a in artifacts.values()]
    assert (
        kinds
        == (
            "dataset nemo_checkpoint nemo_adapter hf_checkpoint quantized report exported engine "
            "benchmark registration index"
        ).split()
    )
    for artifact in artifacts.values():
        for stage, digest in artifact.manifest.inputs.items():
            assert artifacts[stage].manifest.digest == digest
    assert artifacts["register"].manifest.inputs


def test_the_hops_carry_their_proofs(chain):
    for stage in ("import", "merge", "quantize", "export", "build"):
        assert json.loads((chain / stage / "manifest.json").read_text())["proof"], stage


def test_what_was_registered_arrives_elsewhere(chain, tmp_path):
    """Byte for byte, with the chain's folder out of reach but for the store."""
    tags = json.loads((chain / "register/registration.json").read_text())["tags"]
    store = Folder(Path(tags["store"]))
    bundle = read_bundle(store, tags["bundle"])
    assert set(bundle.artifacts) == {"build", "merge", "export", "finetune"}
    for stage in bundle.artifacts:
        found = pull(store, bundle, stage, tmp_path / stage)
        assert found.manifest == open_artifact(chain / stage).manifest
        assert tags[f"digest.{stage}"] == found.manifest.digest
    assert "by lora on data/bank (1,083 rows)" in tags["trained"]


def test_dvc_shows_metrics_and_plots(chain, tmp_path):
    """Of a project with this dvc.yaml and the figures that the stages left."""
    for name in ("metrics", "plots"):
        shutil.copytree(chain / name, tmp_path / "artifacts" / name)
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    dvc_files.write_folder(tmp_path)

    def ask(*words):
        done = subprocess.run(
            [sys.executable, "-m", "dvc", *words, "--json"], cwd=tmp_path, capture_output=True,
            text=True, check=True, timeout=120,
        )  # fmt: skip
        return json.loads(done.stdout)

    shown = {
        Path(name).stem: found["data"] for name, found in ask("metrics", "show")[""]["data"].items()
    }
    assert shown["data"]["test_rows"] == 225
    assert shown["training"]["steps"] == 3
    assert set(shown["evaluation"]["exact_match"]) == {"base", "tuned", "fp8_simulated"}
    assert shown["serving"]["at_2"]["output_tokens_per_second"] > 0
    plots = ask("plots", "show")["data"]
    assert set(plots) == {"loss", "accuracy", "latency", "throughput"}
    for each in plots.values():
        assert each[0]["content"]["data"]["values"]


def test_a_repeat_runs_nothing(chain):
    before = (chain / "merge/manifest.json").stat().st_mtime_ns
    code, said = command(chain, "merge", *SETTINGS)
    assert code == 0
    assert "merge: up to date" in said
    assert (chain / "merge/manifest.json").stat().st_mtime_ns == before


def test_an_unmet_gate_fails_the_run_and_keeps_the_report(chain):
    strict = [*SETTINGS, "evaluate.gate.learned={metric:exact_match,min:1}"]
    code, said = command(chain, "evaluate", *strict)
    assert code == 5
    assert "GateFailed: " in said
    assert "exact match of the tuned model is" in said.partition("GateFailed: ")[2]
    assert (chain / "evaluate/report.md").is_file()
    # Fails again at once, without asking the models again; and the lenient report comes back.
    assert command(chain, "evaluate", *strict)[0] == 5
    code, said = command(chain, "evaluate", *SETTINGS)
    assert code == 0
    assert "restored from cache" in said


def test_a_stage_without_its_inputs_names_the_command(tmp_path):
    code, said = command(tmp_path, "merge")
    assert code == 4
    assert "run `python -m pipeline stage=import` first" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("stage", "word"),
    [
        ("finetune", "prepare.max_length=128"),
        ("merge", "model.name=other"),
        ("build", "quantize=int4_awq"),
        ("serve", "engine=hf"),
        ("prepare", "finetune.max_steps=5"),
    ],
)
def test_a_setting_of_another_stage_is_refused_with_what_to_run(chain, stage, word):
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", f"stage={stage}", f"artifacts={chain}", word],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "run stage=all" in done.stderr


def test_an_engine_of_another_runtime_is_refused(chain):
    others = [word for word in SETTINGS if not word.startswith("engine")]
    code, said = command(chain, "build", *others, "engine=trtllm")
    assert code == 7
    assert "trtllm-build" in said
