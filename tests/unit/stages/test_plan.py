"""stage=plan: what it says for this machine and for others, and when it refuses."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.llama_shapes import write
from pipeline.__main__ import main
from pipeline.core import hardware
from pipeline.core.errors import ConfigError, DataError, MissingRuntime, ResourceError
from pipeline.core.hardware import GIB, Gpu, Machine
from pipeline.core.paths import ROOT
from pipeline.orchestration import compose
from pipeline.planner import layouts, speed
from pipeline.planner import plan as plan_module
from pipeline.planner.accelerators import KNOWN
from pipeline.planner.plan import Plan, make_plan
from pipeline.planner.workload import Rows
from pipeline.stages import plan
from tests.unit.planner.cases import workload

# Each on the hardware that its first line names, with as many GPUs as it asks for.
EXPERIMENTS = {
    "llama3_8b": ("8b", ("a100", "h100", "h200", "b200")),
    "llama3_8b_fp8": ("8b", ("h100", "h200", "b200")),
    "llama3_8b_sft": ("8b", ("h200", "b200")),
    "llama3_70b": ("70b", ("h200", "b200")),
    "llama3_405b": ("405b", ("h200", "b200")),
}
ON_A_CPU = {"smollm2_135m": "smollm2"}


def configured(*overrides: str):
    return compose.from_command_line(["stage=plan", *overrides])[2]


def planned(*overrides: str) -> Plan:
    return make_plan(configured(*overrides))


@pytest.fixture
def llama(tmp_path: Path):
    return lambda size: f"model.path={write(tmp_path / size, size)}"


def machine(*gpus: Gpu) -> Machine:
    return Machine("Linux", "3.12", "a CPU", 16.0, 128 * GIB, "580", gpus)


def test_every_experiment_is_tested() -> None:
    assert {p.stem for p in (ROOT / "conf/experiment").glob("*.yaml")} == {*EXPERIMENTS, *ON_A_CPU}


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_needs_a_model_only_and_fits_its_hardware(experiment, llama) -> None:
    size, gpus = EXPERIMENTS[experiment]
    with pytest.raises(ConfigError, match=r"model\.path"):
        configured(f"experiment={experiment}")
    config = configured(f"experiment={experiment}", llama(size))
    for gpu in gpus:
        on = config.plan.model_copy(update={"gpu": gpu})
        assert make_plan(config.model_copy(update={"plan": on})).problems == ()


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiments_layout_is_about_the_quickest(experiment, llama) -> None:
    made = planned(f"experiment={experiment}", llama(EXPERIMENTS[experiment][0]), "plan.gpu=h200")
    best = layouts.quickest(made.work, KNOWN["h200"], node=8)
    assert best is not None
    assert made.step is not None
    assert made.step.seconds <= 1.05 * best[1]


@pytest.mark.parametrize("experiment", ON_A_CPU)
def test_an_experiment_for_a_cpu_fits_a_machine_of_8_gib(experiment, llama, monkeypatch) -> None:
    small = Machine("Linux", "3.11", "a CPU", 2.0, 8 * GIB, None, ())
    monkeypatch.setattr(hardware, "inspect_machine", lambda: small)
    made = planned(f"experiment={experiment}", llama(ON_A_CPU[experiment]))
    assert made.problems == ()
    assert made.step is not None


def test_the_demo_fits_here_and_the_table_says_so(capsys) -> None:
    plan.run(configured())
    said = capsys.readouterr().out
    for word in ("harbor-support", "Memory of each process", "at the peak", "it fits", "GFLOP/s"):
        assert word in said


def test_the_plan_as_json(capsys, llama) -> None:
    plan.run(configured("plan.gpu=h200", "experiment=llama3_8b", llama("8b"), "plan.format=json"))
    found = json.loads(capsys.readouterr().out)
    assert found["fits"] is True
    assert found["memory"]["total"] == pytest.approx(53.4 * GIB, rel=0.01)
    assert found["step"]["tokens_per_second_a_device"] == pytest.approx(15_823, rel=0.01)
    assert found["stages"]["import"]["disk"] == pytest.approx(16.06e9, rel=0.01)
    assert found["disk"]["free"] is None


def test_what_does_not_fit_names_the_setting_that_would(capsys, llama) -> None:
    arguments = ("plan.gpu=l40s", "experiment=llama3_8b", llama("8b"))
    with pytest.raises(ResourceError) as refused:
        plan.run(configured(*arguments))
    assert "finetune.pack_length=4096 (35.3 GiB)" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert "it fits" not in capsys.readouterr().out
    assert planned(*arguments, "finetune.pack_length=4096").problems == ()


def test_a_run_that_does_not_fit_ends_with_its_exit_code(capsys, llama) -> None:
    arguments = ["stage=plan", "plan.gpu=l40s", "experiment=llama3_8b", llama("8b")]
    assert main(arguments) == 9
    said = capsys.readouterr()
    assert "Memory of each GPU" in said.out  # the plan is shown all the same
    assert said.err.startswith("pipeline: ResourceError: training takes ")
    assert said.err.count("\n") == 1


def test_fp8_on_a_card_without_it(llama) -> None:
    made = planned("plan.gpu=a100", "experiment=llama3_8b_fp8", llama("8b"))
    (problem,) = made.problems
    assert problem.startswith("finetune.precision=fp8: NVIDIA A100 80GB has no FP8, which GPUs of")


def test_settings_that_no_machine_can_run(llama) -> None:
    with pytest.raises(ConfigError, match="8 key-value heads"):
        planned(
            "experiment=llama3_70b",
            llama("70b"),
            "finetune.parallel.tensor=16",
            "finetune.parallel.processes=16",
        )
    with pytest.raises(ConfigError, match=r"prepare\.max_length=9000 is .* the 8192 positions"):
        planned("experiment=llama3_8b", llama("8b"), "prepare.max_length=9000")
    with pytest.raises(
        ConfigError, match=r"engine\.max_seq_len=9000 is more than the 8192 positions"
    ):
        planned("experiment=llama3_8b", llama("8b"), "engine.max_seq_len=9000")
    with pytest.raises(DataError, match="nowhere"):
        planned("model=local", "model.name=x", "model.path=/nowhere")


def test_this_machines_gpus_are_planned_for(monkeypatch, llama) -> None:
    gpu = Gpu("NVIDIA H100 80GB HBM3", 79 * GIB, "9.0", mig=False)
    monkeypatch.setattr(hardware, "inspect_machine", lambda: machine(gpu, gpu))
    made = planned("experiment=llama3_8b", llama("8b"), "artifacts=/tmp")
    assert made.device.name == gpu.name
    assert made.device.memory == 79 * GIB
    assert not [p for p in made.problems if "disk" not in p]
    eight = planned("experiment=llama3_70b", llama("70b"), "artifacts=/tmp")
    assert "processes=8 is over this machine's 2 GPUs" in eight.problems[0]


def test_a_card_that_is_not_in_the_list_has_memory_and_no_time(monkeypatch, capsys, llama) -> None:
    gpu = Gpu("NVIDIA Made Up", 100 * GIB, "8.6", mig=False)
    monkeypatch.setattr(hardware, "inspect_machine", lambda: machine(gpu))
    with pytest.raises(MissingRuntime, match=r"NVIDIA Made Up .* has no FP8"):
        planned("experiment=llama3_8b_fp8", llama("8b"))
    made = planned("experiment=llama3_8b", llama("8b"))
    assert made.step is None
    assert any("is not known, so its time" in note for note in made.notes)


def test_a_disk_that_is_too_small(monkeypatch, llama) -> None:
    monkeypatch.setattr(hardware, "free_disk_bytes", lambda folder: 20e9)
    made = planned("experiment=llama3_8b", llama("8b"))
    assert any("the artifacts take" in p and "artifacts=… on a larger" in p for p in made.problems)


def test_a_model_larger_than_a_gpu_is_converted_on_the_host(llama) -> None:
    made = planned("experiment=llama3_70b", llama("70b"), "plan.gpu=h200")
    on_gpu = {stage.name: stage.on_gpu for stage in made.chain}
    assert not on_gpu["merge"]
    assert any(note.startswith("import, merge") for note in made.notes)


def test_sizes_of_the_demos_artifacts() -> None:
    """Bytes that the demo leaves; of quantize the three formats that scale the weights."""
    disk = {stage.name: stage.disk for stage in planned().chain}
    found = {"import": 17.14e6, "finetune": 4.64e6, "merge": 13.5e6, "quantize": 3 * 16.9e6,
             "export": 10.8e6}  # fmt: skip
    for name, size in found.items():
        assert disk[name] == pytest.approx(size, rel=0.1), name


def test_a_prepared_dataset_gives_its_lengths(tmp_path: Path) -> None:
    config = configured(f"artifacts={tmp_path}")
    assert not make_plan(config).work.rows.known
    folder = tmp_path / "prepare"
    folder.mkdir()
    settings = {n: getattr(config, n).model_dump(mode="json") for n in ("model", "data", "prepare")}
    settings["finetune.objective"] = config.finetune.objective
    (folder / "manifest.json").write_text(json.dumps({"config": settings}))
    splits = {"train": {"rows": 10, "tokens": 500, "length_max": 98}, "validation": {"tokens": 70}}
    (folder / "statistics.json").write_text(json.dumps({"splits": splits}))
    rows = make_plan(config).work.rows
    assert (rows.known, rows.longest, rows.mean, rows.validation_tokens) == (True, 104, 50, 70)
    other = configured(f"artifacts={tmp_path}", "prepare.max_length=128")
    assert make_plan(other).work.rows.longest == 128


def test_planning_imports_nothing_heavy() -> None:
    blocked = "torch transformers nemo megatron modelopt mlflow onnxruntime lightning".split()
    code = (
        "import sys\n"
        f"for name in {blocked!r}: sys.modules[name] = None\n"
        "from pipeline.__main__ import main\n"
        "sys.exit(main(['stage=plan']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_known_cards_have_a_source() -> None:
    for card in KNOWN.values():
        assert card.source in speed.rate_in_words(workload(), card)


def test_a_run_that_nearly_fills_a_gpu_is_noted(llama) -> None:
    arguments = ("experiment=llama3_8b", llama("8b"), "plan.gpu=h200", "finetune.pack_length=26624")
    made = planned(*arguments)
    assert made.problems == ()
    assert any("less than the error of the estimate" in note for note in made.notes)


def test_a_quicker_layout_is_named(llama) -> None:
    slow = planned("experiment=llama3_70b", llama("70b"), "plan.gpu=h200",
                   "finetune.parallel.tensor=8")  # fmt: skip
    (note,) = [note for note in slow.notes if "less time a step" in note]
    assert note.startswith("finetune.parallel.tensor=2 finetune.parallel.pipeline=1 ")
    good = planned("experiment=llama3_70b", llama("70b"), "plan.gpu=h200")
    assert not any("less time a step" in note for note in good.notes)


def test_the_plan_in_the_documentation_is_todays(monkeypatch, capsys, llama) -> None:
    monkeypatch.setenv("COLUMNS", "110")
    plan.run(configured("plan.gpu=h200", "experiment=llama3_70b", llama("70b")))
    lines = [
        f"    {line.rstrip()}" for line in capsys.readouterr().out.splitlines() if line.strip()
    ]
    assert "\n".join(lines) in (ROOT / "docs/scaling.md").read_text()


def test_the_plan_says_steps_and_epochs(monkeypatch, capsys) -> None:
    rows = Rows(1000, 64, 40.0, 0, known=True)
    monkeypatch.setattr(plan_module, "rows_of", lambda config: rows)
    config = configured("finetune.max_steps=500", "finetune.global_batch_size=64")
    plan.run(config)
    out = " ".join(capsys.readouterr().out.split())
    assert "500 steps of 64 rows = 32 epochs of 1,000 rows" in out
    assert "sees each row 32 times" in out
    assert "finetune.epochs=3 is 47 steps" in out
    two = planned("finetune.max_steps=null", "finetune.epochs=2")
    assert two.to_json()["length"] == {"steps": 63, "epochs": 2.016, "rows": 1000}
    assert not any("sees each row" in note for note in two.notes)


def test_epochs_before_the_rows_are_known(monkeypatch, capsys) -> None:
    rows = Rows(None, 64, 64.0, 0, known=False)
    monkeypatch.setattr(plan_module, "rows_of", lambda config: rows)
    config = configured("finetune.max_steps=null", "finetune.epochs=2")
    made = make_plan(config)
    assert (made.steps, made.duration, made.epochs) == (None, None, None)
    assert made.notes[0].endswith("the time of training is known after stage=prepare")
    plan.run(config)
    assert "\n2 epochs\n" in capsys.readouterr().out
