"""The sampling that clients get who name none."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.engine import SamplingConfig
from pipeline.config.schema import load
from pipeline.core.errors import ConfigError
from pipeline.models.sampling_defaults import FILE, sampling_defaults, write_defaults
from pipeline.orchestration.compose import compose

NONE = SamplingConfig.model_validate(dict.fromkeys(SamplingConfig.model_fields))


@pytest.mark.parametrize(
    ("base", "defaults"),
    [
        ({}, {"temperature": 0.0}),
        ({"eos_token_id": 1, "repetition_penalty": 1.1},
         {"temperature": 0.0, "repetition_penalty": 1.1}),
        # Llama 3.1's, Qwen2's, and files that name less.
        ({"do_sample": True, "temperature": 0.6, "top_p": 0.9}, {"temperature": 0.6, "top_p": 0.9}),
        ({"do_sample": True, "temperature": 0.7, "top_k": 20}, {"temperature": 0.7, "top_k": 20}),
        ({"temperature": 0.6}, {"temperature": 0.6}),
        ({"do_sample": True}, {"temperature": 1.0}),
        ({"top_p": 0.9}, {"temperature": 1.0, "top_p": 0.9}),
        ({"do_sample": False, "temperature": 0.6, "top_p": 0.9},
         {"temperature": 0.0, "top_p": 0.9}),
    ],
)  # fmt: skip
def test_a_base_model_that_names_its_sampling_keeps_it(
    base: dict[str, Any], defaults: dict[str, float]
) -> None:
    assert sampling_defaults(base, NONE) == defaults


def test_settings_come_before_the_base_models() -> None:
    settings = NONE.model_copy(update={"temperature": 0.2, "min_p": 0.1})
    base = {"do_sample": True, "temperature": 0.6, "top_p": 0.9}
    assert sampling_defaults(base, settings) == {"temperature": 0.2, "top_p": 0.9, "min_p": 0.1}


def test_the_file_is_written_beside_the_others_and_the_source_stays(tmp_path: Path) -> None:
    source, folder = tmp_path / "merge", tmp_path / "engine"
    source.mkdir()
    folder.mkdir()
    (source / FILE).write_text(json.dumps({"eos_token_id": [1, 7]}))
    os.link(source / FILE, folder / FILE)
    assert write_defaults(source, folder, NONE) == {"temperature": 0.0}
    assert json.loads((source / FILE).read_text()) == {"eos_token_id": [1, 7]}
    found = json.loads((folder / FILE).read_text())
    assert found == {"eos_token_id": [1, 7], "temperature": 0.0, "do_sample": False}


@pytest.mark.parametrize("setting", ["temperature=3", "top_p=0", "top_k=-1", "min_p=2"])
def test_values_that_no_request_may_have_are_refused(setting: str) -> None:
    with pytest.raises(ConfigError, match=setting.partition("=")[0]):
        load(compose([f"engine.sampling.{setting}"]))
