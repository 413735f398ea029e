"""Every record of the table of engines is whole: its settings, its code, its facts."""

import subprocess
import sys

import pytest

from pipeline.core.paths import ROOT
from pipeline.engines.record import EngineRecord
from pipeline.engines.registry import AUTO, ENGINES, first_with, named

FEATURES = {
    "logprobs", "prompt_logprobs", "guide", "logit_bias", "penalties", "adapters", "embeddings",
    "scores", "min_tokens", "allowed_token_ids", "bad_words", "cache_salt", "turns",
}  # fmt: skip
RECORDS = pytest.mark.parametrize("record", ENGINES.values(), ids=list(ENGINES))


def test_the_options_of_the_group_are_the_records() -> None:
    options = {file.stem for file in (ROOT / "conf/engine").glob("*.yaml")}
    assert options == {AUTO, *ENGINES}


@RECORDS
def test_its_option_names_it(record: EngineRecord) -> None:
    text = (ROOT / "conf/engine" / f"{record.name}.yaml").read_text()
    assert f"\nname: {record.name}\n" in text
    assert named(record.name) is record


@RECORDS
def test_its_component_has_all_of_its_code(record: EngineRecord) -> None:
    """A module that is left out would count as code of every stage that imports it."""
    assert record.component.name == f"engine/{record.name}"
    folder = ROOT / "pipeline/engines" / record.name
    modules = {f"pipeline.engines.{record.name}.{file.stem}" for file in folder.glob("*.py")}
    assert {*record.component.modules} == {m for m in modules if not m.endswith("__init__")}


@RECORDS
def test_its_facts_agree(record: EngineRecord) -> None:
    assert record.features <= FEATURES
    assert bool(record.devices) != bool(record.elsewhere)
    assert record.spreads <= ("gpu" in record.devices)
    assert 0 < record.memory.gpu_share <= 1


def test_auto_names_no_engine_and_one_engine_makes_embeddings() -> None:
    assert named(AUTO) is None
    assert first_with("embeddings").name == "hf"


def test_the_table_imports_no_engine() -> None:
    """It is imported to check any command's settings."""
    code = (
        "import sys, pipeline.engines.registry\n"
        "heavy = {'torch', 'onnxruntime', 'numpy', 'httpx', 'tokenizers', 'jinja2'}\n"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
