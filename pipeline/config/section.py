"""What every config section is made of."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationInfo,
    field_validator,
)
from pydantic_core import core_schema

from pipeline.core.errors import short, shown
from pipeline.core.tables import table


def _not_empty(value: object) -> object:
    """Path("") is the working folder, and a setting left empty is none."""
    if value == "":
        raise ValueError("give a path; . is the working folder")
    return value


# Every number has both bounds (a test walks the schema). The upper ones are far above what anybody
# uses: they catch a slip of the hand, such as a learning rate given to a number of steps.
YEAR = 366 * 24 * 3600  # seconds; the clock overflows somewhere beyond
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1, le=10**9)]  # of steps, requests, conversations
Batch = Annotated[int, Field(ge=1, le=65_536)]  # rows or answers at once
Ranks = Annotated[int, Field(ge=1, le=1_024)]  # GPUs that share a model
Processes = Annotated[int, Field(ge=1, le=65_536)]  # GPUs, or machines, of a cluster
Tokens = Annotated[int, Field(ge=1, le=2**24)]  # of a sequence; the longest context today is 10 M
Rank = Annotated[int, Field(ge=0, le=8_192)]  # of a LoRA adapter
Seconds = Annotated[float, Field(gt=0, le=YEAR)]
Rate = Annotated[float, Field(gt=0, le=1)]  # of learning: above 1 numbers overflow
Place = Annotated[Path, BeforeValidator(_not_empty)]


class _Check:
    """Annotation of a text that is checked after its type."""

    def check(self, text: str) -> str:
        raise NotImplementedError

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))


@dataclass(frozen=True)
class Choice(_Check):
    """Annotation of a text that names a record of a table, or one of the other words.

    each: a field of the records with names; then it is one of those, of any record.
    """

    kind: str
    others: tuple[str, ...]
    each: str = ""

    def names(self) -> list[str]:
        records = table(self.kind)
        if self.each:
            found = [name for record in records.values() for name in getattr(record, self.each)]
            return [*self.others, *dict.fromkeys(found)]
        return [*records, *self.others]

    def check(self, text: str) -> str:
        if text in self.others:
            return text
        if not self.each:
            table(self.kind)[text]
        elif text not in self.names():
            raise ValueError(f"choose from {', '.join(self.names())}")
        return text

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {**handler(schema), "enum": self.names()}


@dataclass(frozen=True)
class Form(_Check):
    """Annotation of a text of a certain form. words: what it should be, for messages."""

    pattern: str
    words: str

    def check(self, text: str) -> str:
        if not re.fullmatch(self.pattern, text):
            raise ValueError(f"give {self.words}")
        return text

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {**handler(schema), "form": self.words}


def choice(kind: str, *others: str, each: str = "") -> Choice:
    """A setting that names a record of a table (core/tables.py), or one of the other words.

    each: a field of the records, whose names are meant instead.
    """
    return Choice(kind, others, each)


class Section(BaseModel):
    """A part of the configuration: unknown keys and changes are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _plain_values(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse true where a number is meant, which Python counts as 1, and control characters."""
        kind = cls.model_fields[info.field_name or ""].annotation
        if _has_section(kind):
            return value  # which checks its own
        numbers_alone = not _holds(kind, bool) and (_holds(kind, int) or _holds(kind, float))
        if numbers_alone and any(isinstance(part, bool) for part in _inside(value)):
            raise ValueError("give a number, not true or false")
        lines = "\n\t" if _holds(kind, Any) else ""  # an engine's own argument may be a long text
        if any(not _is_plain(text, but=lines) for text in _texts(value)):
            raise ValueError("a control character or a byte that is not UTF-8: remove it")
        return value

    def but(self, **changes: Any) -> Self:
        """The same section with other values, checked.

        A mapping changes a section inside: `settings.but(max_steps=5, parallel={"tensor": 2})`.
        """
        for name, value in changes.items():
            inside = getattr(self, name)
            if isinstance(inside, Section) and isinstance(value, Mapping):
                changes[name] = inside.but(**value)
        return self.model_validate(dict(self) | changes)


def _holds(annotation: Any, kind: type) -> bool:
    """Whether a type is, or has inside, this one or `Any`."""
    parts = get_args(annotation)
    return annotation in (kind, Any) or any(_holds(part, kind) for part in parts)


def _has_section(annotation: Any) -> bool:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return True
    return any(_has_section(part) for part in get_args(annotation))


def _inside(value: Any) -> list[Any]:
    if isinstance(value, list | tuple):
        return list(value)
    return list(value.values()) if isinstance(value, Mapping) else [value]


def _texts(value: Any) -> list[str]:
    """Every text in a value, keys included."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [text for part in (*value.keys(), *value.values()) for text in _texts(part)]
    return [t for part in value for t in _texts(part)] if isinstance(value, list | tuple) else []


def _is_plain(text: str, *, but: str = "") -> bool:
    """Whether a text can stand in a file: no control character, no lone surrogate."""
    for char in text:
        if (char < " " and char not in but) or char == "\x7f" or "\ud800" <= char <= "\udfff":
            return False
    return True


VARIANTS = ("local", "torchrun", "slurm", "kubernetes")  # of the section launcher


def explain(error: Mapping[str, Any], section: str = "") -> str:
    """What is wrong with a field of a section, or of the whole configuration, in a line."""
    # The second part of a place among several sections is the name of the one that was chosen.
    place = [part for i, part in enumerate(error["loc"]) if i != 1 or part not in VARIANTS]
    field = ".".join(str(part) for part in (section, *place) if part != "")
    if error["type"] == "extra_forbidden":
        return f"{field} is not a setting: see `python -m pipeline --help`"
    if error["type"] == "missing":
        return f"{field} is not set: give {field}=… or choose an option that sets it"
    if error["type"] == "union_tag_invalid":
        given = shown(error["input"]["name"])
        return f"{field}.name={given}: choose from {', '.join(VARIANTS)}"
    if error["type"] == "tuple_type" and isinstance(error["input"], str | int):
        given = short(str(error["input"]))
        return f"{field}={shown(error['input'])}: give a list: {field}=[{given}]"
    said = error["msg"].removeprefix("Value error, ")
    if isinstance(error["input"], Mapping):  # a section: the message names what in it is wrong
        return said if said.startswith(f"{field}.") else f"{field}: {said}"
    return f"{field}={shown(error['input'])}: {said}"
