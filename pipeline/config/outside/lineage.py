"""Settings of stage=lineage."""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from pipeline.config.section import Section


def _named(value: object) -> object:
    """A version's number, or the digits at the beginning of a digest, are a text here."""
    if isinstance(value, float):
        raise ValueError("this digest reads as a number: give more of it, or \"lineage.of='…'\"")
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return str(value) if is_number else value


Named = Annotated[str, BeforeValidator(_named)]


class LineageConfig(Section):
    """What stage=lineage follows, and what it forgets."""

    of: Named | None = Field(
        min_length=1,
        description="What to follow: an artifact (finetune, or its folder), a version (3, "
        "champion), a file, or the beginning of a digest; null: everything that is here",
    )
    conversation: str | None = Field(
        min_length=1,
        description="Which versions have seen this conversation: a part of its text, or a file "
        "with its rows",
    )
    forget: bool = Field(
        description="Remove the conversation from snapshots and recordings, keep it out of every "
        "later dataset, and mark the versions that were trained on it"
    )
    confirm: bool = Field(description="Forget without asking at the terminal")
    format: Literal["table", "json"] = Field(description="Form of the output")

    @model_validator(mode="after")
    def _one_question(self) -> Self:
        if self.of is not None and self.conversation is not None:
            raise ValueError("give lineage.of or lineage.conversation: each is a question")
        if self.forget and self.conversation is None:
            raise ValueError("lineage.forget=true needs lineage.conversation: what to forget")
        return self
