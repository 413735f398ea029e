"""What every config section is made of."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
)
from pydantic_core import core_schema

from pipeline.core.tables import table


def _not_empty(value: object) -> object:
    """Path("") is the working folder, and a setting left empty is none."""
    if value == "":
        raise ValueError("give a path; . is the working folder")
    return value


Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]
Rate = Annotated[float, Field(gt=0, le=1)]  # of learning: above 1 numbers overflow
Place = Annotated[Path, BeforeValidator(_not_empty)]


@dataclass(frozen=True)
class Choice:
    """Annotation of a text that names a record of a table, or one of the other words."""

    kind: str
    others: tuple[str, ...]

    def check(self, name: str) -> str:
        if name not in self.others:
            table(self.kind)[name]
        return name

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {**handler(schema), "enum": [*table(self.kind), *self.others]}


def choice(kind: str, *others: str) -> Choice:
    """A setting that names a record of a table (core/tables.py), or one of the other words."""
    return Choice(kind, others)


class Section(BaseModel):
    """A part of the configuration: unknown keys and changes are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def but(self, **changes: Any) -> Self:
        """The same section with other values, checked.

        A mapping changes a section inside: `settings.but(max_steps=5, parallel={"tensor": 2})`.
        """
        for name, value in changes.items():
            inside = getattr(self, name)
            if isinstance(inside, Section) and isinstance(value, Mapping):
                changes[name] = inside.but(**value)
        return self.model_validate(dict(self) | changes)


def explain(error: Mapping[str, Any], section: str = "") -> str:
    """What is wrong with a field of a section, or of the whole configuration, in a line."""
    field = ".".join(str(part) for part in (section, *error["loc"]) if part != "")
    if error["type"] == "extra_forbidden":
        return f"{field} is not a setting: see `python -m pipeline --help`"
    if error["type"] == "missing":
        return f"{field} is not set: give {field}=… or choose an option that sets it"
    if error["type"] == "tuple_type" and isinstance(error["input"], str | int):
        return f"{field}={error['input']!r}: give a list: {field}=[{error['input']}]"
    return f"{field}={error['input']!r}: {error['msg'].removeprefix('Value error, ')}"
