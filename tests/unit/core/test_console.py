"""What reaches a terminal: texts of others cannot control it."""

import io

import pytest
from rich.panel import Panel
from rich.table import Table

from pipeline.core.console import confirm, get_console, printable, progress, report
from pipeline.core.errors import ConfigError

HOSTILE = "a\x1b[2J\x1b]0;title\x07b\r\x9b31m\u202ec\x00"


def test_printable() -> None:
    assert printable("plain, ünïcode 漢\n\ttext") == "plain, ünïcode 漢\n\ttext"
    assert printable(HOSTILE) == "a\\x1b[2J\\x1b]0;title\\x07b\\r\\x9b31m\\u202ec\\x00"
    assert printable("\ud800") == "\\ud800"


def test_nothing_on_the_console_is_an_escape(monkeypatch: pytest.MonkeyPatch) -> None:
    shown, console = io.StringIO(), get_console()
    monkeypatch.setattr(console, "_file", shown)
    table = Table(HOSTILE, title=HOSTILE)
    table.add_row(HOSTILE)
    console.print(f"[red]{HOSTILE}[/]", Panel(HOSTILE, title=HOSTILE), table)
    console.rule(HOSTILE)
    with progress() as bar:
        bar.add_task(HOSTILE, total=1)
    assert not set(shown.getvalue()) & set("\x1b\x07\x9b\u202e\x00\r")
    assert "\\x1b[2J" in shown.getvalue()


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
