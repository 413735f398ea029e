"""serve: which engine's folder the server opens, and what the user is told."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.deployment import pull
from pipeline.deployment.pull import Registered
from pipeline.orchestration import compose
from pipeline.serving import server
from pipeline.stages import serve
from pipeline.tracking.registry_reader import Version
from tests.made_artifacts import make_artifact


@pytest.mark.parametrize("version", [None, "champion", 2])
def test_what_was_built_last_or_a_registered_version(
    version: str | int | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    kept = make_artifact(tmp_path / ".variants", "build", "engine")
    opened, asked = [], []

    def stand_in(folder: Path, listening: Any, **options: Any) -> bool:
        opened.append(folder)
        options["announce"]()
        return True

    def engine_of(wanted: str | int, config: Any) -> Registered:
        asked.append(wanted)
        return Registered(kept, Version("bank", 2, ("champion",), {}))

    monkeypatch.setattr(server, "serve", stand_in)
    monkeypatch.setattr(pull, "engine_of", engine_of)
    monkeypatch.setattr(pull, "tell_if_moved", lambda *_: None)
    wanted = [] if version is None else [f"serve.version={version}"]
    words = ["stage=serve", "serve.port=0", f"artifacts={tmp_path}", *wanted]
    serve.run(compose.from_command_line(words)[2])
    told = capsys.readouterr()
    if version is None:
        assert (opened, asked) == ([tmp_path / "build"], [])
        assert "version" not in told.out + told.err
    else:
        assert (opened, asked) == ([kept.path], [version])
        assert "version 2 (champion)" in told.out + told.err
