"""Tables: records by name, unknown names, names taken twice; settings that name a record."""

from dataclasses import dataclass
from typing import Annotated

import pytest
from pydantic import ValidationError

from pipeline.config import section
from pipeline.config.section import Section, choice
from pipeline.core.errors import ConfigError
from pipeline.core.tables import Table


@dataclass(frozen=True)
class Shape:
    name: str
    corners: int


@pytest.fixture
def shapes() -> Table[Shape]:
    return Table("shape", Shape("triangle", 3), Shape("square", 4))


def test_records_are_found_by_name_in_their_order(shapes: Table[Shape]) -> None:
    shapes.add(Shape("pentagon", 5))
    assert list(shapes) == ["triangle", "square", "pentagon"]
    assert shapes["square"].corners == 4
    assert "pentagon" in shapes
    assert "circle" not in shapes


def test_an_unknown_name_is_answered_with_the_nearest(shapes: Table[Shape]) -> None:
    with pytest.raises(ConfigError, match="no shape 'squared': did you mean square"):
        shapes["squared"]
    with pytest.raises(ConfigError, match="choose from triangle, square"):
        shapes["circle"]


def test_a_name_is_given_once(shapes: Table[Shape]) -> None:
    with pytest.raises(ValueError, match="shape 'square' exists already"):
        shapes.add(Shape("square", 4))


def test_a_setting_names_a_record_or_another_word(
    shapes: Table[Shape], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(section, "table", lambda kind: {"shape": shapes}[kind])

    class Drawing(Section):
        shape: Annotated[str, choice("shape", "none")]

    assert Drawing(shape="square").shape == "square"
    assert Drawing(shape="none").shape == "none"
    with pytest.raises(ValidationError, match="did you mean square"):
        Drawing(shape="sqare")
    names = Drawing.model_json_schema()["properties"]["shape"]["enum"]
    assert names == ["triangle", "square", "none"]
    shapes.add(Shape("sqare", 4))
    assert Drawing(shape="sqare").shape == "sqare"


def test_a_long_name_is_shortened_in_the_message() -> None:
    with pytest.raises(ConfigError) as refused:
        Table("weight format")["x" * 10_000]
    assert len(str(refused.value)) < 200
    assert "(10,000 characters)" in str(refused.value)
