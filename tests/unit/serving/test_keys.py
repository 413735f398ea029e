import hmac
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.errors import ConfigError
from pipeline.serving import keyring
from pipeline.serving.keyring import Keyring, digest, read_keys
from pipeline.serving.keys import main
from pipeline.serving.middleware.daily_usage import DailyUsage


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.jsonl"


def make(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["new", *arguments]) == 0
    return capsys.readouterr().out.strip()


def test_a_new_key_is_shown_once_and_found_by_its_digest(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = make(capsys, "anna", "--file", str(file))
    second = make(
        capsys, "ben", "--file", str(file), "--requests-per-minute", "5", "--models", "bank", "base"
    )
    assert len(first) > 40
    text = file.read_text()
    assert first not in text
    assert second not in text
    assert file.stat().st_mode & 0o777 == 0o600
    ring = Keyring(file)
    anna, ben = ring.find(first.encode()), ring.find(second.encode())
    assert anna is not None
    assert (anna.name, anna.requests_per_minute, anna.allows("any")) == ("anna", None, True)
    assert ben is not None
    assert (ben.name, ben.requests_per_minute) == ("ben", 5)
    assert (ben.allows("base"), ben.allows("other")) == (True, False)
    assert ring.find(digest(first).encode()) is None, "a leaked file opens nothing"


def test_without_a_file_the_line_to_add_is_printed(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["new", "anna"]) == 0
    said = capsys.readouterr()
    file.write_text(said.err.partition("add this to your keys file: ")[2])
    found = Keyring(file).find(said.out.strip().encode())
    assert found is not None
    assert found.name == "anna"


def test_a_file_that_does_not_end_its_last_line_is_added_to(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text(json.dumps({"name": "old", "sha256": digest("x")}))
    make(capsys, "new", "--file", str(file))
    assert [key.name for key in read_keys(file)] == ["old", "new"]


def test_the_environments_key_counts_too(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    secret = make(capsys, "anna", "--file", str(file))
    both = Keyring(file, {"SERVE_API_KEY": "from-env"})
    names = [key and key.name for key in map(both.find, [secret.encode(), b"from-env", b"x"])]
    assert names == ["anna", "environment", None]
    assert Keyring(None, {"SERVE_API_KEY": "k"}).requires_key
    assert not Keyring(None, {"SERVE_API_KEY": ""}).requires_key
    assert not Keyring(None, {}).requires_key


def test_every_key_is_compared_in_full(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = [make(capsys, name, "--file", str(file)) for name in ("a", "b", "c")]
    compared: list[tuple[str, str]] = []
    real = hmac.compare_digest

    def compare(one: str, other: str) -> bool:
        compared.append((one, other))
        return real(one, other)

    ring = Keyring(file)
    monkeypatch.setattr(keyring.hmac, "compare_digest", compare)
    for given in (None, b"", b"wrong", secrets[0].encode(), secrets[2].encode()):
        compared.clear()
        ring.find(given)
        assert len(compared) == 3
        assert {len(part) for pair in compared for part in pair} == {64}


def test_a_changed_file_is_read_again_and_a_broken_one_is_not(
    file: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(keyring, "REFRESH_SECONDS", 0)
    first = make(capsys, "anna", "--file", str(file))
    ring = Keyring(file)
    second = make(capsys, "ben", "--file", str(file))
    assert ring.find(second.encode())
    file.write_text("{")
    assert ring.find(second.encode())
    assert "earlier keys stay valid" in caplog.text
    file.write_text("\n")
    assert ring.find(first.encode()) is None
    assert ring.requires_key
    file.unlink()
    assert ring.find(second.encode()) is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "keys.jsonl:1: the line: Invalid JSON"),
        ('\n{"name": "a"}', "keys.jsonl:2: sha256: Field required"),
        ('{"name": "a", "sha256": "secret-in-clear"}', "keys.jsonl:1: sha256"),
        ('{"name": "a b", "sha256": DIGEST}', "keys.jsonl:1: name"),
        ('{"name": "a", "sha256": DIGEST, "rpm": 3}', "keys.jsonl:1: rpm"),
        ('{"name": "a", "sha256": DIGEST}\n' * 2, "the name a is used twice"),
    ],
)
def test_a_wrong_file_names_the_line_and_no_secret(file: Path, text: str, words: str) -> None:
    file.write_text(text.replace("DIGEST", json.dumps(digest("x"))))
    with pytest.raises(ConfigError) as caught:
        Keyring(file)
    assert words in str(caught.value)
    assert "secret-in-clear" not in str(caught.value)


def test_the_error_for_a_missing_file_names_the_command(file: Path) -> None:
    with pytest.raises(ConfigError, match=r"keys new NAME --file .*keys.jsonl"):
        Keyring(file)


@pytest.mark.parametrize("arguments", [
    ("a b",), ("anna", "--tokens-per-minute", "0"), ("anna", "--expires-days", "-1"),
    ("anna", "--weight", "0"), ("anna", "--file", os.devnull + "/x"),
])  # fmt: skip
def test_what_cannot_be_made_is_refused(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["new", *arguments]) == ConfigError.exit_code
    said = capsys.readouterr()
    assert said.err.startswith("pipeline: ")
    assert said.out == ""


def secrets_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[str, str]:
    """What a command prints: to standard output, and to standard error."""
    assert main(list(arguments)) == 0
    said = capsys.readouterr()
    return said.out.strip(), said.err


def test_a_rotated_key_keeps_its_limits_and_its_former_secret_for_a_while(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = make(capsys, "anna", "--file", str(file), "--requests-per-day", "5", "--weight", "2")
    make(capsys, "ben", "--file", str(file))
    second, said = secrets_of(capsys, "rotate", "anna", "--file", str(file))
    assert "the former one is valid until" in said
    found = [Keyring(file).find(secret.encode()) for secret in (first, second)]
    assert [(k.name, k.requests_per_day, k.weight) for k in found if k] == [("anna", 5, 2)] * 2
    assert not any(key.has_expired() for key in found if key)
    assert [key.name for key in read_keys(file)] == ["anna", "ben"]
    assert file.stat().st_mode & 0o777 == 0o600

    third, said = secrets_of(capsys, "rotate", "anna", "--file", str(file), "--overlap-hours", "0")
    assert "no longer" in said
    ring = Keyring(file)
    assert [bool(ring.find(s.encode())) for s in (first, second, third)] == [False, False, True]


def test_a_former_secret_expires(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = make(capsys, "anna", "--file", str(file))
    secrets_of(capsys, "rotate", "anna", "--file", str(file), "--overlap-hours", "0.000001")
    time.sleep(0.01)
    former = Keyring(file).find(first.encode())
    assert former is not None
    assert former.has_expired()


def test_a_revoked_key_is_gone(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    secret = make(capsys, "anna", "--file", str(file))
    make(capsys, "ben", "--file", str(file))
    assert secrets_of(capsys, "revoke", "anna", "--file", str(file))[1] == "anna is revoked\n"
    assert Keyring(file).find(secret.encode()) is None
    assert main(["revoke", "anna", "--file", str(file)]) == ConfigError.exit_code
    assert "has no key named anna: it has ben" in capsys.readouterr().err


def test_keys_are_listed_without_their_digests(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(capsys, "anna", "--file", str(file), "--tokens-per-day", "5", "--expires-days", "0.00001")
    make(capsys, "ben", "--file", str(file), "--priority", "3", "--admin", "--expires-days", "30")
    usage = tmp_path / "usage.json"
    used = DailyUsage(usage)
    used.of("ben").tokens = 12
    used.close()
    time.sleep(1)
    listing = secrets_of(capsys, "list", "--file", str(file), "--usage", str(usage))[0]
    title, anna, ben = listing.splitlines()
    assert title.split() == ["name", "state", "expires", "limits", "today"]
    assert anna.split()[:2] == ["anna", "expired"]
    assert "5 tokens per day" in anna
    assert ben.split()[:2] == ["ben", "valid"]
    assert "priority 3; admin" in ben
    assert "0 requests, 12 tokens" in ben
    assert read_keys(file)[0].sha256 not in listing


def test_two_commands_at_a_time_lose_nothing(file: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        codes = list(pool.map(lambda i: main(["new", f"k{i}", "--file", str(file)]), range(8)))
    assert codes == [0] * 8
    assert {key.name for key in read_keys(file)} == {f"k{i}" for i in range(8)}


def test_an_engine_without_turns_refuses_shares(
    file: Path, capsys: pytest.CaptureFixture[str], caplog: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keyring, "REFRESH_SECONDS", 0)
    make(capsys, "anna", "--file", str(file))
    ring = Keyring(file)
    ring.refuse_shares("vllm")
    secret = make(capsys, "ben", "--file", str(file), "--weight", "2")
    assert ring.find(secret.encode()) is None
    assert "the vllm engine orders requests by itself" in caplog.text
    with pytest.raises(ConfigError, match="the key ben has a weight or a priority"):
        Keyring(file).refuse_shares("vllm")


def test_changes_are_reported_by_name(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keyring, "REFRESH_SECONDS", 0)
    make(capsys, "anna", "--file", str(file))
    make(capsys, "ben", "--file", str(file))
    ring, seen = Keyring(file), []
    ring.on_change = seen.append
    secrets_of(capsys, "rotate", "anna", "--file", str(file))
    ring.find(b"")
    secrets_of(capsys, "revoke", "ben", "--file", str(file))
    make(capsys, "eve", "--file", str(file))
    ring.find(b"")
    assert seen == [
        {"added": [], "removed": [], "changed": ["anna"]},
        {"added": ["eve"], "removed": ["ben"], "changed": []},
    ]


def test_names_are_unique(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(capsys, "anna", "--file", str(file))
    assert main(["new", "anna", "--file", str(file)]) == ConfigError.exit_code
    assert "has a key named anna" in capsys.readouterr().err


def test_the_environments_name_is_reserved(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file with that name could not be read again."""
    for more in ((), ("--file", str(file))):
        assert main(["new", "environment", *more]) == ConfigError.exit_code
        said = capsys.readouterr()
        assert said.err.startswith(
            "pipeline: ConfigError: the name environment is reserved for SERVE_"
        )
        assert said.out == ""
    assert not file.exists()


def test_white_space_around_the_environments_key_is_ignored() -> None:
    ring = Keyring(None, {"SERVE_API_KEY": " from-env\n"})
    assert ring.find(b"from-env")
    with pytest.raises(ConfigError, match="SERVE_API_KEY is blank"):  # rather than open to all
        Keyring(None, {"SERVE_API_KEY": " \n"})
