"""What every command of the package does with an error."""

import argparse
import errno
from importlib import import_module
from pathlib import Path

import pytest

from pipeline.core.commands import INTERRUPTED, Parser, number, run_command
from pipeline.core.errors import EXIT_CODE_FILE, DataError
from pipeline.core.paths import PACKAGE

# Processes that only other modules start, with words that these choose.
INTERNAL = {
    "pipeline.engines.process.worker", "pipeline.models.chat.tokenizer_trial",
    "pipeline.orchestration.stage_versions", "pipeline.orchestration.sweep",
    "pipeline.serving.guides.process", "pipeline.tracking.mlflow_versions",
    "pipeline.tracking.sender_process", "pipeline.training.torchrun", "pipeline.training.workers",
}  # fmt: skip


def commands() -> list[str]:
    files = (f for f in PACKAGE.rglob("*.py") if '__name__ == "__main__"' in f.read_text())
    names = {".".join(f.relative_to(PACKAGE.parent).with_suffix("").parts) for f in files}
    return sorted(names - INTERNAL - {"pipeline.__main__"})


def fail(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (DataError("a file is wrong"), 3, "DataError: a file is wrong"),
        (MemoryError(), 9, "ResourceError: memory ran out: run on a larger machine"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "f"), 3, "DataError: f cannot be used"),
        (OSError(errno.ENOENT, "No such file", "given"), 3, "DataError: given cannot be used"),
        (KeyboardInterrupt(), INTERRUPTED, "interrupted: run the same command again"),
    ],
)
def test_what_can_be_mended_is_one_line(
    capsys: pytest.CaptureFixture[str], error: BaseException, code: int, said: str
) -> None:
    assert run_command(lambda: fail(error), files=[Path("given"), None]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"pipeline: {said}")


def test_a_bug_is_shown_with_its_traceback(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(EXIT_CODE_FILE, str(tmp_path / "code"))
    assert run_command(lambda: fail(OSError(errno.ENOENT, "No such file", "ours"))) == 1
    assert "Traceback" in capsys.readouterr().err
    assert (tmp_path / "code").read_text() == "1"
    assert run_command(lambda: None) == 0
    assert run_command(lambda: fail(DataError("x")), wants_traceback=True) == 3
    assert "Traceback" in capsys.readouterr().err


def test_options_are_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    parser = Parser(prog="command")
    parser.add_argument("--share", type=number(float, 0, 1))
    assert parser.parse_args(["--share", "0.5"]).share == 0.5
    for value in ("nan", "-1", "2", "1e999", "x" * 5_000, "\x1b[31m"):
        with pytest.raises(SystemExit, match="2"):
            parser.parse_args(["--share", value])
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("pipeline: ConfigError: argument --share: ")
        assert len(line) < 400


@pytest.mark.parametrize("name", commands())
def test_every_command_refuses_in_one_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        import_module(name).main(["--no-such-option"])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("pipeline: ConfigError: ")


def test_no_command_handles_errors_by_itself() -> None:
    for name in commands():
        source = Path(str(import_module(name).__file__)).read_text()
        assert "run_command(" in source, name
        assert argparse.__name__ not in source or "argparse.ArgumentParser(" not in source, name
