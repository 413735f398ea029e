"""`python -m pipeline.serving`: its errors and exit codes."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.core.paths import ROOT
from pipeline.engines.description import Description
from pipeline.serving.__main__ import main, read_settings
from tests.unit.model_folders import make_model_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An HF folder, which is no engine."""
    return make_model_folder(tmp_path / "model", "demo")


@pytest.mark.parametrize(
    ("settings", "code", "words"),
    [
        (["serve.prot=1"], 2, "serve.prot is not a setting: see `python -m pipeline --help`"),
        (["serve.port=high", "serve.max_queue=0"], 2, "serve.port='high': Input should be a valid"),
        (["serve.port=high", "serve.max_queue=0"], 2, "serve.max_queue=0: Input should be greater"),
        (["port=1"], 2, "'port=1' must be serve.key=value or engine.key=value"),
        (["serve=1"], 2, "'serve=1' must be serve.key=value or engine.key=value"),
        (["serve.host=*"], 2, "'serve.host=*': the value is not valid YAML"),
        (["serve.port.x=1"], 2, "serve.port.x is not a setting"),
        (["engine.nothing.x=1"], 2, "engine.nothing.x is not a setting"),
        (["engine.arguments.tensor_parallel_size=two"], 2, "must be a whole number of GPUs"),
        (["engine.arguments.gpu_memory_utilization=80"], 2, "must be above 0, at most 1"),
        (["serve.port=0", "engine.name=remote"], 2, "needs engine.arguments.base_url=http"),
        (["serve.port=0", "serve.keys_file=none.jsonl"], 2, "pipeline.serving.keys new NAME"),
        (["serve.port=0", "serve.version=champion"], 2, "serve.version is for stage=serve"),
        (["serve.port=0"], 4, "has no engine: build one with `python -m pipeline stage=build`"),
    ],
)
def test_wrong_settings_are_reported_in_one_line(
    folder: Path, capfd: pytest.CaptureFixture[str], settings: list[str], code: int, words: str
) -> None:
    assert main(["--engine", str(folder), "--model", "bank", *settings]) == code
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.startswith("pipeline: ")
    assert words in last


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", " "], "ConfigError: --model is empty"),
        (["--model", "bank", "--fd", "99"], "ConfigError: --fd 99 is not a socket ("),
        (["--model", "bank", "--fd", "-1"], "ConfigError: --fd -1 is not a socket ("),
    ],
)
def test_wrong_options_are_reported_in_one_line(
    folder: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert main(["--engine", str(folder), *arguments, "serve.port=0"]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"pipeline: {words}")


def test_ctrl_c_while_it_starts_prints_no_traceback(folder: Path) -> None:
    """In a process that interrupts itself where it begins to import what it serves with."""
    code = (
        "import signal, sys\n"
        "from pipeline.serving.__main__ import main\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'uvicorn': signal.raise_signal(signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        f"sys.exit(main(['--engine', {str(folder)!r}, '--model', 'bank', 'serve.port=0']))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 130
    assert ended.stderr == "pipeline: interrupted before the server was ready\n"


def test_bad_defaults_of_a_model_are_found_before_its_engine_is_opened(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (folder / "generation_config.json").write_text("{bad")
    settings = ["serve.port=0", "engine.name=remote", "engine.arguments.model=m"]
    settings += ["engine.arguments.base_url=http://127.0.0.1:9/v1"]
    assert main(["--engine", str(folder), "--model", "bank", *settings]) == 3
    assert "generation_config.json cannot be read" in capfd.readouterr().err.splitlines()[-1]


def test_engine_arguments_can_be_set_one_by_one_or_together(folder: Path) -> None:
    given = ['engine.arguments={"model": "m"}', "engine.arguments.base_url=http://a:1/v1"]
    engine = read_settings(given, folder)[1]
    assert engine
    assert engine.arguments == {"model": "m", "base_url": "http://a:1/v1"}


def test_lengths_that_are_not_given_follow_from_the_model(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": 128}))
    engine = read_settings(["engine.name=auto"], folder)[1]
    assert engine
    assert (engine.max_seq_len, engine.max_input_len) == (128, 96)


def test_a_built_engine_is_not_opened_as_anything_else(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    Description("hf", "1", "fp32", {}, "hash", 4, 64, 96).write(folder)
    settings = ["serve.port=0", "engine.max_seq_len=4096"]
    assert main(["--engine", str(folder), "--model", "bank", *settings]) == 2
    assert "was built with its own engine settings" in capfd.readouterr().err


def test_a_port_in_use_is_found_before_anything_is_loaded(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        arguments = ["--engine", str(folder), "--model", "bank", f"serve.port={port}"]
        assert main(arguments) == 8
    (line,) = capfd.readouterr().err.splitlines()
    assert f"port {port} of 127.0.0.1 is in use" in line


def test_the_log_is_json_from_its_first_line(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    main(["--engine", str(folder), "--model", "bank", "serve.port=0"])
    first = json.loads(capfd.readouterr().err.splitlines()[0])
    assert (first["message"], first["model"]) == ("loading", "bank")
