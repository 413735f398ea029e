"""The audit log's lines, and what becomes of a line that is changed or cannot be written."""

import json
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request

from pipeline.core.errors import ConfigError, DataError
from pipeline.serving import audit as command
from pipeline.serving.keyring import Keyring
from pipeline.serving.middleware.audit import START, AuditLog, AuditMiddleware, check
from pipeline.serving.middleware.auth import OPEN_PATHS, AuthMiddleware
from pipeline.serving.middleware.request_log import InFlight, RequestLogMiddleware
from tests.unit.serving.asgi import answering, ask


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def site(log: AuditLog) -> Any:
    def answer(request: Request) -> dict[str, str]:
        return {"asked": request.url.path}

    app = AuthMiddleware(answering(answer), Keyring(None, {"SERVE_API_KEY": "k"}))
    layered = AuditMiddleware(app, log, OPEN_PATHS)
    return RequestLogMiddleware(layered, in_flight=InFlight(), failed=lambda status: None)


def test_requests_and_refused_keys_have_lines_without_secrets(tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    log = AuditLog(file)
    app = site(log)
    key = {"authorization": "Bearer k"}
    ask(app, "POST", "/v1/chat/completions", headers=key, json={"messages": ["private"]})
    ask(app, "POST", "/v1/chat/completions", headers={"authorization": "Bearer sk-wrong"})
    ask(app, "POST", "/v1/load_lora_adapter", headers=key)
    ask(app, "GET", "/health/ready")
    log.close()
    found = lines(file)
    assert [line["event"] for line in found] == [
        "request", "key_refused", "adapter", "server_stopped",
    ]  # fmt: skip
    assert (found[0]["key"], found[0]["status"], found[1]["status"]) == ("environment", 200, 401)
    assert "key" not in found[1]
    assert found[0]["previous"] == START
    assert not [word for word in ("private", "sk-wrong") if word in file.read_text()]
    assert file.stat().st_mode & 0o777 == 0o600
    assert check([file]) == 4


def test_the_chain_goes_on_after_a_restart_and_in_a_new_file(tmp_path: Path) -> None:
    file, old = tmp_path / "audit.jsonl", tmp_path / "audit.jsonl.1"
    AuditLog(file).close()
    log = AuditLog(file)
    file.rename(old)
    log.add("request", {"path": "/v1/x"})
    log.close()
    assert [len(lines(old)), len(lines(file))] == [1, 2]
    assert check([old, file]) == 3
    assert command.main([str(old), str(file)]) == 0


@pytest.mark.parametrize("damage", [
    lambda text: text.replace("/v1/b", "/v1/z"),
    lambda text: "".join(text.splitlines(keepends=True)[::2]),
    lambda text: text + "{}\n",
])  # fmt: skip
def test_a_changed_line_is_found(
    tmp_path: Path, damage: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "audit.jsonl"
    log = AuditLog(file)
    for path in ("/v1/a", "/v1/b", "/v1/c"):
        log.add("request", {"path": path})
    log.close()
    file.write_text(damage(file.read_text()))
    with pytest.raises(DataError, match=rf"{file.name}:\d"):
        check([file])
    assert command.main([str(file)]) == DataError.exit_code
    assert "pipeline: DataError" in capsys.readouterr().err


def test_without_a_line_there_is_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "audit.jsonl"
    log = AuditLog(file)
    app, key = site(log), {"authorization": "Bearer k"}
    real = log._stream.write

    class Full:
        def write(self, data: bytes) -> int:
            return real(data[:10])  # the disk is full in the middle of a line

        def fileno(self) -> int:
            return stream.fileno()

    stream = log._stream
    monkeypatch.setattr(log, "_stream", Full())
    assert ask(app, "POST", headers=key).status_code == 200  # its line is written later
    refused = ask(app, "POST", headers=key)
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "audit_log_failed"
    assert ask(app, path="/health/live").status_code == 200
    monkeypatch.setattr(log, "_stream", stream)
    assert ask(app, "POST", headers=key).status_code == 200
    assert check([file]) == 2
    log.close()


@pytest.mark.parametrize(("text", "words"), [
    ("{}\n", "none of an audit log"), ('{"previous": "x"}', "not whole"),
])  # fmt: skip
def test_another_file_is_not_added_to(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "audit.jsonl"
    file.write_text(text)
    with pytest.raises(ConfigError, match=words):
        AuditLog(file)
    with pytest.raises(ConfigError, match="cannot be written"):
        AuditLog(tmp_path / "none" / "audit.jsonl")
