"""The server's address: refusals with an action, and commands that can be copied."""

import ast
import json
import shlex
import socket
from pathlib import Path

import pytest

from pipeline.core.errors import Busy, ConfigError
from pipeline.serving import address


def test_port_zero_takes_a_free_one() -> None:
    with address.listen("127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]
        assert address.base_url(listening) == f"http://127.0.0.1:{port}/v1"
        with socket.create_connection(("127.0.0.1", port)):
            pass


def test_a_port_in_use_is_refused_with_another_to_take() -> None:
    with address.listen("127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]
        with pytest.raises(Busy, match=rf"port {port} of 127\.0\.0\.1 is in use.*serve\.port=0"):
            address.listen("127.0.0.1", port)


@pytest.mark.parametrize("host", ["no such host", "192.0.2.1"])
def test_an_address_that_is_not_ours_is_refused(host: str) -> None:
    with pytest.raises(ConfigError, match=rf"serve\.host={host}"):
        address.listen(host, 0)


def test_an_address_for_everyone_is_called_by_loopback() -> None:
    with address.listen("0.0.0.0", 0) as listening:
        assert address.base_url(listening).startswith("http://127.0.0.1:")


@pytest.mark.parametrize(("host", "key", "keys_file", "warns"), [
    ("127.0.0.1", "", None, False),
    ("0.0.0.0", "", None, True),
    ("0.0.0.0", "secret", None, False),
    ("0.0.0.0", "", Path("keys.jsonl"), False),
])  # fmt: skip
def test_an_open_server_is_warned_of(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    host: str,
    key: str,
    keys_file: Path | None,
    warns: bool,
) -> None:
    monkeypatch.setenv(address.API_KEY, key)
    with address.listen(host, 0) as listening:
        address.warn_if_open(listening, keys_file)
    assert (address.API_KEY in capsys.readouterr().err) == warns


@pytest.mark.parametrize("with_key", [False, True])
def test_what_to_type_is_a_shell_command_and_a_program(with_key: bool) -> None:
    curl, program = address.how_to_call("http://h:1/v1", "bank", with_key).split("\n\n")
    words = shlex.split(curl)
    assert words[:2] == ["curl", "http://h:1/v1/chat/completions"]
    assert json.loads(words[-1])["model"] == "bank"
    assert (f"Authorization: Bearer ${address.API_KEY}" in words) == with_key
    lines = program.splitlines()
    assert (lines[0], lines[-1]) == ("python - <<'EOF'", "EOF")
    ast.parse("\n".join(lines[1:-1]))
    assert (address.API_KEY in program) == with_key
