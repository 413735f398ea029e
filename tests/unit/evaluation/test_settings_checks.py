"""Measures that cannot be taken are refused by stage=plan and stage=all, before anything runs."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.config.defaults import default_config
from pipeline.core.errors import ConfigError, DataError, MissingRuntime
from pipeline.core.extras import EXTRAS
from pipeline.evaluation.settings_checks import check_measures


def check(**changes: Any) -> None:
    check_measures(default_config({f"evaluate.{name}": v for name, v in changes.items()}))


def test_files_that_are_missing_or_wrong(tmp_path: Path) -> None:
    check()
    with pytest.raises(DataError, match=r"own\.py does not exist: correct the setting"):
        check(metrics=["exact_match", f"{tmp_path}/own.py:polite"])
    (tmp_path / "schema.json").write_text("7")
    schema = {"metrics": ["exact_match", "json_schema"], "json_schema": tmp_path / "schema.json"}
    with pytest.raises(DataError, match="is no JSON schema"):
        check(**schema)
    embedder = {"metrics": ["exact_match", "embedding_similarity"], "embedder": tmp_path}
    with pytest.raises(DataError, match="is no folder of a sentence-transformers model"):
        check(**embedder)


def test_a_key_that_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"metrics": ["exact_match", "judge_score"], "judge.endpoint.key_variable": "JUDGE_KEY"}
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with pytest.raises(ConfigError, match=r"key_variable=JUDGE_KEY: this environment variable is"):
        check(**given)
    monkeypatch.setenv("JUDGE_KEY", "k" * 20)
    check(**given)


def test_a_harness_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    extra = EXTRAS["lm-eval"]
    monkeypatch.setattr(type(extra), "missing", lambda self: ["lm_eval"])
    with pytest.raises(MissingRuntime, match=r"evaluate\.benchmarks needs lm_eval.*EXTRA=lm-eval"):
        check(benchmarks=["gsm8k"])
