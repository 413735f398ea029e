"""What reaches a terminal: texts of others cannot control it."""

import io
import re
from collections.abc import Callable

import pytest
from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from pipeline.core.console import (
    confirm,
    get_console,
    output_console,
    printable,
    progress,
    report,
)
from pipeline.core.errors import ConfigError
from pipeline.core.paths import PACKAGE

HOSTILE = "a\x1b[2J\x1b]0;title\x07b\r\x9b31m\u202ec\x00"


def test_printable() -> None:
    assert printable("plain, ünïcode 漢\n\ttext") == "plain, ünïcode 漢\n\ttext"
    assert printable(HOSTILE) == "a\\x1b[2J\\x1b]0;title\\x07b\\r\\x9b31m\\u202ec\\x00"
    assert printable("\ud800") == "\\ud800"


@pytest.mark.parametrize("console", [get_console, output_console])
def test_nothing_on_the_console_is_an_escape(
    monkeypatch: pytest.MonkeyPatch, console: "Callable[[], Console]"
) -> None:
    shown, console = io.StringIO(), console()
    monkeypatch.setattr(console, "_file", shown)
    table = Table(HOSTILE, title=HOSTILE)
    table.add_row(HOSTILE)
    console.print(f"[red]{HOSTILE}[/]", Panel(HOSTILE, title=HOSTILE), table)
    console.rule(HOSTILE)
    console.print(f"password={'x' * 8}")
    assert not set(shown.getvalue()) & set("\x1b\x07\x9b\u202e\x00\r")
    assert "\\x1b[2J" in shown.getvalue()
    assert "xxxx" not in shown.getvalue()


def test_a_progress_bar_shows_no_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(get_console(), "_file", shown)
    with progress() as bar:
        bar.add_task(HOSTILE, total=1)
    assert not set(shown.getvalue()) & set("\x1b\x07\x9b\u202e\x00\r")


def test_no_module_prints_past_these_consoles() -> None:
    """A console of rich's own, or an error that is printed, would show texts of others as they
    are."""
    found = [
        f"{file.relative_to(PACKAGE)}: {line.strip()}"
        for file in PACKAGE.rglob("*.py")
        if file.name != "console.py"
        for line in file.read_text().splitlines()
        if re.search(r"(?<!Clean)\bConsole\((?!\))|print\(f?\"pipeline: ", line)
    ]
    assert found == []


def test_errors_are_printable(capsys: pytest.CaptureFixture[str]) -> None:
    report(f"DataError: {HOSTILE}")
    assert capsys.readouterr().err == f"pipeline: DataError: {printable(HOSTILE)}\n"


def test_what_cannot_be_undone_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert confirm("Remove it?", given=True, setting="clean.confirm")
    with pytest.raises(ConfigError, match=r"Remove it\? Nobody .* give clean\.confirm=true"):
        confirm("Remove it?", given=False, setting="clean.confirm")
    for answer, agreed in (("y\n", True), ("YES\n", True), ("n\n", False), ("\n", False)):
        terminal = io.StringIO(answer)
        terminal.isatty = lambda: True  # type: ignore[method-assign]
        monkeypatch.setattr("sys.stdin", terminal)
        monkeypatch.setattr("sys.stderr", Terminal())
        assert confirm("Remove it?", given=False, setting="clean.confirm") is agreed


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_an_error_is_one_line_of_a_readable_length(capsys: pytest.CaptureFixture[str]) -> None:
    report(f"DataError: two\nlines\n and {'y' * 5_000} here")
    shown = capsys.readouterr().err
    assert shown.startswith("pipeline: DataError: two lines and yyy")
    assert shown.endswith("yyy (5,000 characters) here\n")
    assert len(shown) < 300
