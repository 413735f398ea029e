"""Each setting says what it means: --help and the settings reference print it."""

from collections.abc import Iterator, Mapping
from typing import Any, get_args, get_origin

import pytest
from pydantic.fields import FieldInfo

from pipeline.config.schema import Config
from pipeline.config.section import Section


def sections_of(annotation: Any) -> list[type[Section]]:
    """Config sections that a type holds, directly or among alternatives; not in a mapping, whose
    keys are the user's."""
    if get_origin(annotation) is Mapping:
        return []
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [section for part in get_args(annotation) for section in sections_of(part)]


def settings(section: type[Section], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Dotted name and field of every setting below a section."""
    for name, field in section.model_fields.items():
        inner = sections_of(field.annotation)
        if not inner:
            yield prefix + (field.alias or name), field
        for below in inner:
            yield from settings(below, f"{prefix}{field.alias or name}.")


def test_the_whole_schema_is_walked() -> None:
    names = {name for name, _ in settings(Config)}
    assert {"seed", "register.name", "finetune.adapter.rank", "launcher.claim"} <= names
    assert {"launcher.account", "launcher.nodes", "evaluate.gate"} <= names


@pytest.mark.parametrize(("name", "field"), list(settings(Config)))
def test_every_setting_has_one_plain_line(name: str, field: FieldInfo) -> None:
    text = field.description or ""
    assert text, f"{name} has no description"
    assert text[0].isupper() or not text[0].isalpha(), name
    assert len(text) <= 160
    assert not text.endswith(".")
    assert "\n" not in text
