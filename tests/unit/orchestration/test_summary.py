"""The summary says what the manifests say, and a person can read it."""

import io
import json
import time
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.config.schema import Config
from pipeline.orchestration import compose, summary, summary_view
from pipeline.tracking.client import Delivery
from tests.made_artifacts import make_artifact, make_chain


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return compose.from_command_line(["stage=all", f"artifacts={tmp_path}"])[2]


def shown(content: dict, artifacts: Path, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    summary_view.show_summary(content, artifacts, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_summary_is_what_the_manifests_say(tmp_path: Path, config: Config) -> None:
    made = make_chain(tmp_path)
    content = summary.write_summary(tmp_path, config)
    assert json.loads((tmp_path / "summary.json").read_text()) == content
    assert list(content["stages"]) == list(made)  # in the order of the graph
    assert content["stages"]["finetune"] == {
        "kind": "nemo_adapter",
        "seconds": 61.0,
        "peak_memory_bytes": 700 * 2**20,
        "bytes": made["finetune"].manifest.bytes,
        "metrics": {"train/loss": 0.02},
        "failure": None,
        "digest": made["finetune"].manifest.digest,
        "artifact": str(tmp_path / "finetune"),
        "manifest": str(tmp_path / "finetune" / "manifest.json"),
        "reused": False,
    }
    assert content["totals"]["seconds"] == 7 * 2.5 + 61 + 40
    assert content["totals"]["bytes"] == sum(a.manifest.bytes for a in made.values())
    assert content["accuracy"]["fp8"]["exact_match"]["value"] == 0.92
    assert content["gate"] == {"passed": True, "reason": None}
    assert content["engine"]["runtime"] == "onnxruntime"


def test_stages_that_were_there_before_count_as_reused(tmp_path: Path, config: Config) -> None:
    now = time.time()
    make_artifact(tmp_path, "prepare", "dataset", created=now - 60)
    make_artifact(tmp_path, "import", "nemo_checkpoint", created=now)
    content = summary.write_summary(tmp_path, config, since=now)
    assert content["stages"]["prepare"]["reused"]
    assert not content["stages"]["import"]["reused"]
    assert content["totals"]["seconds"] == 5.0
    assert content["totals"]["seconds_of_this_run"] == 2.5


def test_a_person_sees_times_answers_accuracy_engine_and_what_to_do_next(
    tmp_path: Path, config: Config
) -> None:
    make_chain(tmp_path)
    text = shown(summary.write_summary(tmp_path, config), tmp_path)
    lines = text.splitlines()
    assert any("finetune" in line and "61.0 s" in line for line in lines)
    assert (
        "  7 steps of 16 rows = 0.12 epochs of 900 rows; step 7 of 7 was kept: it is the last"
        in lines
    )
    assert any("I like the sea." in line and "number 0." in line for line in lines)
    bars = {
        line.replace(",", " ").split()[0]: line.count("█")
        for line in lines
        if line.strip().startswith(("base ", "tuned ", "fp8, ")) and "%" in line
    }
    assert bars["base"] < bars["fp8"] <= bars["tuned"] < summary_view.BAR
    assert any("fp8, simulated" in line and "92.0%" in line for line in lines)
    served = next(line for line in lines if line.strip().startswith("served"))
    assert "90.0%" in served
    assert "onnxruntime int8, temperature 0" in served
    assert "gate passed" in text
    assert text.index("at 4") < text.index("at 16")
    assert f"mlflow ui --backend-store-uri sqlite:///{tmp_path}/mlflow/mlflow.db" in text
    assert "python -m pipeline stage=serve" in text
    assert "curl http://127.0.0.1:8000/v1/chat/completions" in text


def test_commands_are_not_broken_on_a_narrow_terminal(tmp_path: Path, config: Config) -> None:
    make_chain(tmp_path)
    text = shown(summary.write_summary(tmp_path, config), tmp_path, width=60)
    assert f"mlflow ui --backend-store-uri sqlite:///{tmp_path}/mlflow/mlflow.db" in text


def test_a_failed_gate_is_said_with_its_reason(tmp_path: Path, config: Config) -> None:
    make_chain(tmp_path, failure="fp8 lost 9 points")
    content = summary.write_summary(tmp_path, config)
    assert content["gate"] == {"passed": False, "reason": "fp8 lost 9 points"}
    text = shown(content, tmp_path)
    assert "gate failed: fp8 lost 9 points" in text
    assert "failed the gate" in text


def test_half_a_run_has_half_a_summary(tmp_path: Path, config: Config) -> None:
    make_artifact(tmp_path, "prepare", "dataset")
    (tmp_path / "import").mkdir()  # begun, without a manifest
    content = summary.write_summary(tmp_path, config)
    assert list(content["stages"]) == ["prepare"]
    assert content["gate"] is None
    text = shown(content, tmp_path)
    assert "prepare" in text
    assert "Engine" not in text


def test_an_altered_artifact_is_left_out_and_named(
    tmp_path: Path, config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    make_artifact(tmp_path, "prepare", "dataset", files={"train.parquet": "rows"})
    (tmp_path / "prepare" / "train.parquet").write_text("others")
    assert summary.write_summary(tmp_path, config)["stages"] == {}
    assert "train.parquet was altered" in capsys.readouterr().err


def test_a_tracking_password_is_not_in_the_summary(
    tmp_path: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hunter2@team:5000")
    content = summary.write_summary(tmp_path, config)
    assert content["tracking"] == "http://me:***@team:5000"


def test_text_in_answers_is_not_markup(tmp_path: Path, config: Config) -> None:
    row = {
        "question": "What is [bold]?",
        "expected": "[x]",
        "answers": {"base": "", "tuned": "[x]"},
    }
    files = {"predictions.jsonl": json.dumps(row) + "\n"}
    make_artifact(tmp_path, "evaluate", "report", files=files)
    text = shown(summary.write_summary(tmp_path, config), tmp_path)
    assert "What is [bold]?" in text
    assert "[x]" in text


def test_the_registrys_answer_is_told() -> None:
    answer = {"name": "bank", "version": 3, "aliases": ["candidate"], "reason": "2 is better"}
    console = Console(file=io.StringIO(), width=200, highlight=False)
    summary_view.show_delivery(Delivery(registered=answer), console)
    summary_view.show_delivery(Delivery(), console)
    summary_view.show_delivery(
        Delivery(registered={**answer, "aliases": ["candidate", "champion"]}), console
    )
    assert console.file.getvalue().splitlines() == [  # type: ignore[attr-defined]
        "Registered as bank version 3, candidate: 2 is better",
        "`stage=serve` serves this one, serve.version=champion the champion",
        "Registered as bank version 3, candidate and champion: 2 is better",
    ]


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0.0 KiB"), (3 * 2**20, "3.0 MiB"), (5 * 2**29, "2.50 GiB")]
)
def test_sizes_are_told_in_a_fitting_unit(count: int, text: str) -> None:
    assert summary_view._size(count) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(10_352.6, "10,353"), (5172.2, "5,172"), (86.4321, "86.43"), (0.0123456, "0.01235"), (1, "1")],
)
def test_figures_of_the_engine_are_told_without_powers_of_ten(value: float, text: str) -> None:
    stages = {"build": {"bytes": 1}, "benchmark": {"metrics": {"tokens_per_second/at_16": value}}}
    engine = {"runtime": "hf", "version": "1", "precision": "fp32"}
    table = summary_view._engine_table({"engine": engine, "stages": stages})
    console = Console(file=io.StringIO(), width=200, highlight=False)
    console.print(table)
    assert f" {text} at 16" in console.file.getvalue()  # type: ignore[attr-defined]
