"""The fields that say what form an answer must have: OpenAI's `response_format`, and vLLM's
`structured_outputs`."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from pipeline.serving.openai.prompt_types import Texts, at_most

MAX_GUIDED_CHOICES = 1000  # llguidance supports at most 2,000
MAX_TAGS = 128


class _Part(BaseModel):
    """An object inside a request. Unknown fields in it are ignored."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)


class TextFormat(_Part):
    type: Literal["text"]


class JsonFormat(_Part):
    type: Literal["json_object"]


class Schema(_Part):
    name: str | None = None
    value: dict[str, Any] = Field(alias="schema")


class SchemaFormat(_Part):
    type: Literal["json_schema"]
    json_schema: Schema


class Tag(_Part):
    """What comes between two texts, wherever the first one begins."""

    begin: Annotated[str, Field(min_length=1), at_most(256, "characters")]
    value: dict[str, Any] | None = Field(None, alias="schema")
    end: Annotated[str, at_most(256, "characters")]


class TagContent(_Part):
    type: Literal["json_schema", "any_text"]
    json_schema: dict[str, Any] | bool | None = None


class ContentTag(_Part):
    type: Literal["tag"] = "tag"
    begin: Annotated[str, Field(min_length=1), at_most(256, "characters")]
    content: TagContent
    end: Annotated[str, at_most(256, "characters")]


class TriggeredTags(_Part):
    type: Literal["triggered_tags"]
    triggers: Annotated[Texts, Field(min_length=1), at_most(MAX_TAGS, "triggers")]
    tags: Annotated[list[ContentTag], Field(min_length=1), at_most(MAX_TAGS, "tags")]


class TagFormat(_Part):
    """Free text with tags: with `structures` and `triggers`, or with XGrammar's `format`."""

    type: Literal["structural_tag"] = "structural_tag"
    structures: Annotated[list[Tag], Field(min_length=1), at_most(MAX_TAGS, "tags")] | None = None
    triggers: Annotated[Texts, Field(min_length=1), at_most(MAX_TAGS, "triggers")] | None = None
    format: TriggeredTags | None = None


ResponseFormat = Annotated[
    TextFormat | JsonFormat | SchemaFormat | TagFormat, Field(discriminator="type")
]


class StructuredOutputs(_Part):
    """vLLM's; it replaces guided_json, guided_regex and so on. One of the first six fields."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    value: str | dict[str, Any] | None = Field(None, alias="json", description="a JSON schema")
    json_object: bool | None = None
    regex: str | None = None
    choice: Annotated[Texts, Field(min_length=1), at_most(MAX_GUIDED_CHOICES, "choices")] | None = (
        None
    )
    grammar: str | None = None
    structural_tag: str | None = Field(None, description="a structural_tag in JSON")
    whitespace_pattern: Annotated[str, at_most(256, "characters")] | None = None
    disable_any_whitespace: bool | None = None
    disable_additional_properties: bool | None = None
    disable_fallback: Any = None  # there is one library, so there is no other to fall back to
