"""What benchmarks of this machine measured is found by the name of the profile."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from pipeline.core.artifact import open_artifact
from pipeline.core.hardware import GIB, Gpu, Machine
from pipeline.core.paths import MANIFEST
from pipeline.engines.benchmark_history import measured_here
from pipeline.engines.description import Description
from pipeline.engines.memory import read_decoder
from tests.made_artifacts import make_artifact
from tests.unit.model_folders import add_weights, make_model_folder

HERE = Machine("Linux", "3.12", "a processor", 2.0, 8 * GIB, None, ())
H200 = Gpu("NVIDIA H200", 140 * GIB, "9.0", mig=False)
MADE = Description("onnxruntime", "1", "int8", {}, "0" * 64, 4, 8, 16)


@pytest.fixture
def artifacts(tmp_path: Path) -> Path:
    add_weights(make_model_folder(tmp_path / "merge", "demo"))
    make_artifact(tmp_path, "merge", "hf_checkpoint")
    return tmp_path


def measure(
    artifacts: Path,
    engine: Description,
    *rates: float,
    where: Machine = HERE,
    aside: str = "",
    requests: int = 48,
    created: float | None = None,
) -> None:
    """An engine's build and benchmark; with `aside` among the variants."""
    folder = artifacts / ".variants" if aside else artifacts
    names = [f"build-{aside}", f"benchmark-{aside}"] if aside else ["build", "benchmark"]
    described = json.dumps(asdict(engine))
    merged = open_artifact(artifacts / "merge")
    built = make_artifact(
        folder,
        "build",
        "engine",
        name=names[0],
        files={"engine.json": described},
        inputs={"merge": merged},
    )
    metrics = {f"output_tokens_per_second/at_{i}": rate for i, rate in enumerate(rates)}
    make_artifact(
        folder,
        "benchmark",
        "benchmark",
        name=names[1],
        environment={"hardware": asdict(where)},
        files={"report.json": "{}"},
        metrics={**metrics, "requests_per_second/at_0": 1e9},
        inputs={"build": built},
        config={"benchmark": {"requests": requests}},
        created=created,
    )


def test_rates_of_another_load_do_not_count(artifacts: Path) -> None:
    measure(artifacts, MADE, 100, created=2e9)
    measure(artifacts, replace(MADE, precision="fp32"), 9000, aside="1", requests=4, created=1e9)
    model = read_decoder(artifacts / "merge")
    assert measured_here(artifacts, model, HERE) == {"onnxruntime-int8-tp1-pp1": 100}


def test_the_best_load_of_every_profile_counts(artifacts: Path) -> None:
    measure(artifacts, MADE, 100, 900, 400)
    measure(artifacts, replace(MADE, runtime="hf", precision="fp32", lora_rank=8), 70, aside="1")
    measure(artifacts, MADE, 1000, aside="2")
    model = read_decoder(artifacts / "merge")
    assert measured_here(artifacts, model, HERE) == {
        "onnxruntime-int8-tp1-pp1": 1000,
        "hf-fp32-tp1-pp1-feat_lora": 70,
    }
    assert measured_here(artifacts, replace(model, layers=9), HERE) == {}


@pytest.mark.parametrize(
    "where",
    [replace(HERE, cpu="another"), replace(HERE, cores=4.0), replace(HERE, gpus=(H200,))],
)
def test_what_other_hardware_measured_does_not_count(artifacts: Path, where: Machine) -> None:
    measure(artifacts, MADE, 100, where=where)
    model = read_decoder(artifacts / "merge")
    assert measured_here(artifacts, model, HERE) == {}
    assert measured_here(artifacts, model, where) == {"onnxruntime-int8-tp1-pp1": 100}


def test_what_is_not_whole_or_not_there_does_not_count(artifacts: Path, tmp_path: Path) -> None:
    model = read_decoder(artifacts / "merge")
    assert measured_here(tmp_path / "nowhere", model, HERE) == {}
    measure(artifacts, MADE, 100)
    (artifacts / "build" / "engine.json").write_text("{}")
    assert measured_here(artifacts, model, HERE) == {}
    measure(artifacts, MADE, 100)
    (artifacts / "build" / MANIFEST).write_text("{")
    assert measured_here(artifacts, model, HERE) == {}
