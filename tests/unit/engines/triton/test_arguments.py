"""engine.arguments of engine=triton, and config.pbtxt."""

from typing import Any

import pytest

from pipeline.core.errors import ConfigError
from pipeline.engines.registry import ENGINES, behind
from pipeline.engines.triton import arguments, pbtxt
from tests.unit.engines.triton.cases import configured

RECORD = ENGINES["triton"]


def test_the_engine_behind_has_its_own_arguments() -> None:
    engine = configured(model="m", engine="vllm", arguments={"gpu_memory_utilization": 0.5})
    assert behind(engine).name == "vllm"
    assert behind(engine).arguments == {"gpu_memory_utilization": 0.5}
    assert behind(configured("hf")).name == "hf"


@pytest.mark.parametrize(("backend", "here"), [("python", True), ("vllm", False)])
def test_only_some_backends_run_elsewhere(backend: str, here: bool) -> None:
    assert RECORD.hosts
    assert RECORD.hosts(configured(model="m", backend=backend)).here is here


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"model": "a b"}, "Triton takes letters"),
        ({}, "Triton takes letters"),
        ({"model": "m", "backend": "onnx"}, "choose from python, tensorrtllm, vllm, onnxruntime"),
        ({"model": "m", "backend": "vllm", "engine": "hf"}, "behind Triton's backend vllm"),
        ({"model": "m", "x": 1}, "does not know engine.arguments.x"),
        ({"model": "m", "config": {"tokenz": {}}}, "choose the model from text, tokens"),
        ({"model": "m", "config": 3}, "must be a mapping"),
        ({"model": "m", "server": "--log-verbose=1"}, "must be a list of options"),
        ({"model": "m", "server": ["log"]}, "is no option of tritonserver"),
        ({"model": "m", "server": ["--http-port=1"]}, "--http-port is set by this engine"),
        ({"model": "m", "mount": "models"}, "give an absolute path"),
    ],
)
def test_what_is_wrong_is_named(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        RECORD.check_settings(configured(**given))


def test_adapters_are_refused() -> None:
    engine = configured(model="m").model_copy(update={"lora_rank": 8})
    with pytest.raises(ConfigError, match="take no adapters"):
        RECORD.check_settings(engine)


def test_fields_of_users_are_written_into_the_config() -> None:
    config = pbtxt.merged(
        {"name": "a", "parameters": {"x": "1"}, "instance_group": [{"count": 1}]},
        {"parameters": {"y": 'ä"'}, "dynamic_batching": {}, "instance_group": [{"count": 2}]},
    )
    assert pbtxt.text(config) == (
        'name: "a"\n'
        'parameters { key: "x" value { string_value: "1" } }\n'
        'parameters { key: "y" value { string_value: "\\303\\244\\"" } }\n'
        "instance_group { count: 2 }\n"
        "dynamic_batching {  }\n"
    )
    for wrong in ({"Name": 1}, {"x": None}):
        with pytest.raises(ConfigError, match="config"):
            pbtxt.text(wrong)


def test_every_part_has_a_name_of_its_own() -> None:
    assert len(set(arguments.PARTS.values())) == len(arguments.PARTS)
