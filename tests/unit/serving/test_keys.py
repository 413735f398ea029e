import hmac
import json
import os
from pathlib import Path

import pytest

from pipeline.core.errors import ConfigError
from pipeline.serving import keys
from pipeline.serving.keys import Keyring, digest, main, read_keys


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
    monkeypatch.setattr(keys.hmac, "compare_digest", compare)
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
    monkeypatch.setattr(keys, "REFRESH_SECONDS", 0)
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
    ("a b",), ("anna", "--tokens-per-minute", "0"), ("anna", "--file", os.devnull + "/x"),
])  # fmt: skip
def test_what_cannot_be_made_is_refused(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["new", *arguments]) == ConfigError.exit_code
    said = capsys.readouterr()
    assert said.err.startswith("pipeline: ")
    assert said.out == ""


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
