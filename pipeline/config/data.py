"""Settings of the data files (conf/data)."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from pipeline.config.section import Form, Place, Section

Weighted = Annotated[
    str, Form(r".+:\s*(0\.0*[1-9]\d{0,5}|[1-9]\d{0,2}(\.\d{1,6})?)", 'a text as "train.jsonl: 2"')
]

# What a column can be mapped to: fields of a row, and those of a turn.
ROW_FIELDS = (
    "messages", "conversations", "system", "history", "prompt", "completion", "instruction",
    "input", "context", "output", "response", "question", "answer", "text", "tools", "functions",
    "chosen", "rejected", "label", "weight", "category", "language", "conversation_id",
)  # fmt: skip
TURN_FIELDS = ("role", "content", "weight")
# The field that decides which format a row has.
RowFormat = Literal[
    "messages", "conversations", "instruction", "prompt", "input", "question", "text"
]


def _columns(given: dict[str, str]) -> dict[str, str]:
    known = dict.fromkeys((*ROW_FIELDS, *TURN_FIELDS))
    for field, column in given.items():
        if field not in known:
            raise ValueError(f"{field!r:.60} is no field of a row: choose from {', '.join(known)}")
        if not column:
            raise ValueError(f"{field} needs the name of a column")
    twice = next((c for c in given.values() if list(given.values()).count(c) > 1), None)
    if twice is not None:
        raise ValueError(f"the column {twice!r:.60} has two fields: give it one")
    return given


class DataConfig(Section):
    """The files to read. All names are globs below `folder`."""

    folder: Place = Field(
        description="Folder with the data files; or hf://datasets/ORG/NAME@REVISION, "
        "s3://BUCKET/PREFIX or gs://BUCKET/PREFIX, of which the files are fetched that the globs "
        "match"
    )
    train: tuple[str, ...] = Field(
        min_length=1, description="Files with training conversations, as globs below the folder"
    )
    test: tuple[str, ...] = Field(
        description="Files with test conversations, as globs below the folder",
    )
    test_share: Annotated[float, Field(gt=0, le=0.5)] | None = Field(
        description="Share of the training conversations that become test questions, where there "
        "are no test files"
    )
    sources: tuple[str, ...] = Field(
        description="Plain texts with `## heading` sections to train on, as globs below the folder"
    )
    recorded: str = Field(
        min_length=1,
        description="Folder below it with snapshots of served conversations; may be absent",
    )
    mixture: tuple[Weighted, ...] = Field(
        description='How often rows of training files are in an epoch, as "GLOB: WEIGHT": 2 has '
        "each row twice, 0.5 every second row; other files have 1"
    )
    format: RowFormat | None = Field(
        description="The field that decides the format of a row with one answer; null: each row's "
        "fields decide"
    )
    columns: Annotated[dict[str, str], AfterValidator(_columns)] = Field(
        description="Columns that have another name, as data.columns.prompt=frage"
    )
    ignore_fields: tuple[str, ...] = Field(
        description="Fields of rows and turns that have no effect on training and are left out on "
        "purpose; a row with any other such field is refused"
    )

    @model_validator(mode="after")
    def _has_one_kind_of_test(self) -> Self:
        if not self.test and self.test_share is None:
            raise ValueError(
                "data.test=[]: name the files with test questions, or set data.test_share=0.1, "
                "which keeps every tenth training conversation for them"
            )
        if self.test and self.test_share is not None:
            raise ValueError(
                f"data.test_share={self.test_share:g} has no effect beside test files: set "
                "data.test=[] or data.test_share=null"
            )
        return self
