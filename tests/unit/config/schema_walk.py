"""Every setting of the schema, with its type and its bounds."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_origin

from pydantic import TypeAdapter
from pydantic.fields import FieldInfo

from pipeline.config.section import Section


@dataclass(frozen=True)
class Leaf:
    """A setting. name: dotted, as users type it. schema: its JSON schema."""

    name: str
    field: FieldInfo
    schema: dict[str, Any]

    @property
    def numbers(self) -> list[dict[str, Any]]:
        """The schemas of every number in it: itself, one of several, an entry, a value."""
        return list(_numbers(self.schema))

    @property
    def is_number(self) -> bool:
        """Whether it is a number or null, and nothing else."""
        kinds = {s.get("type") for s in self.schema.get("anyOf", [self.schema])}
        return bool(kinds & {"integer", "number"}) and kinds <= {"integer", "number", "null"}

    @property
    def bounds(self) -> list[float]:
        names = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
        return [schema[name] for schema in self.numbers for name in names if name in schema]

    def allows(self, value: float) -> bool:
        """Whether a number has the type and is within the bounds."""
        (schema,) = self.numbers
        whole = schema["type"] != "integer" or float(value).is_integer()
        low = value >= schema.get("minimum", value) and value > schema.get(
            "exclusiveMinimum", value - 1
        )
        high = value <= schema.get("maximum", value) and (
            "exclusiveMaximum" not in schema or value < schema["exclusiveMaximum"]
        )
        return whole and low and high


def leaves(section: type[Section], prefix: str = "") -> Iterator[Leaf]:
    """Every setting below a section; those of the variants of a section too."""
    for name, field in section.model_fields.items():
        inner = sections_of(field.annotation)
        dotted = prefix + (field.alias or name)
        for below in inner:
            yield from leaves(below, f"{dotted}.")
        if not inner:
            annotated: Any = Annotated[field.annotation, field]
            yield Leaf(dotted, field, TypeAdapter(annotated).json_schema())


def sections_of(annotation: Any) -> list[type[Section]]:
    """Config sections that a type holds, directly or among alternatives; not in a mapping, whose
    keys are the user's."""
    if get_origin(annotation) is Mapping:
        return []
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [section for part in get_args(annotation) for section in sections_of(part)]


def _numbers(schema: Any) -> Iterator[dict[str, Any]]:
    if isinstance(schema, dict):
        if schema.get("type") in ("integer", "number"):
            yield schema
        for part in (*schema.get("anyOf", ()), schema.get("items"),
                     schema.get("additionalProperties")):  # fmt: skip
            yield from _numbers(part)
