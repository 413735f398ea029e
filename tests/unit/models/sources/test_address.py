"""What model.path may name, and what it says of other forms."""

from pathlib import Path

import pytest

from pipeline.core.errors import ConfigError
from pipeline.models.sources.address import Address, is_source, not_a_folder, parse


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hf://Qwen/Qwen3-8B", Address("hf", "Qwen/Qwen3-8B")),
        ("hf://Qwen/Qwen3-8B/", Address("hf", "Qwen/Qwen3-8B")),
        ("hf:/Qwen/Qwen3-8B", Address("hf", "Qwen/Qwen3-8B")),  # as Path writes it
        ("HF://gpt2@refs/pr/1", Address("hf", "gpt2", "refs/pr/1")),
        ("s3://bucket/models/a b", Address("s3", "bucket/models/a b")),
        ("gs://bucket/models", Address("gs", "bucket/models")),
        ("file:///models/a%20b", Path("/models/a b")),
        ("file://localhost/models", Path("/models")),
    ],
)
def test_forms(text: str, expected: Address | Path) -> None:
    assert is_source(text)
    assert parse(text) == expected
    if isinstance(expected, Address):
        assert parse(str(expected)) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("hf://", "hf://ORG/NAME@REVISION"),
        ("hf://a/b/c", "hf://ORG/NAME@REVISION"),
        ("hf://../x", "hf://ORG/NAME@REVISION"),
        ("hf://a/b@x y", "hf://ORG/NAME@REVISION"),
        ("s3://bucket/../x", "s3://BUCKET/PREFIX"),
        ("s3://", "s3://BUCKET/PREFIX"),
        ("file://host/x", "file:///FOLDER"),
        ("az://container/x", "is not a known kind of address"),
        ("https://hub.example/Qwen/Qwen3-8B/tree/v1", "type model.path=hf://Qwen/Qwen3-8B@v1"),
        ("https://example.com", "is a web page: give a folder"),
    ],
)
def test_other_forms_are_refused_with_the_right_one(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse(text)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("text", ["models/llama", "/models/llama", "C:x", "a:b/c", ""])
def test_folders_are_no_sources(text: str) -> None:
    assert not is_source(text)


def test_a_bare_name_is_answered_with_the_line_to_type(tmp_path: Path) -> None:
    line = "type model.path=hf://meta-llama/Llama-3.1-8B"
    assert line in not_a_folder(Path("meta-llama/Llama-3.1-8B"))
    assert not_a_folder(tmp_path) == not_a_folder(Path("/a/b")) == not_a_folder(Path("a")) == ""
