"""Settings of the data files (conf/data)."""

from typing import Annotated

from pydantic import Field

from pipeline.config.section import Form, Place, Section

Weighted = Annotated[
    str, Form(r".+:\s*(0\.0*[1-9]\d{0,5}|[1-9]\d{0,2}(\.\d{1,6})?)", 'a text as "train.jsonl: 2"')
]


class DataConfig(Section):
    """The files to read. All names are globs below `folder`."""

    folder: Place = Field(description="Folder with the data files")
    train: tuple[str, ...] = Field(
        min_length=1, description="Files with training conversations, as globs below the folder"
    )
    test: tuple[str, ...] = Field(
        min_length=1,
        description="Files with test conversations, as globs below the folder",
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
    ignore_fields: tuple[str, ...] = Field(
        description="Fields of rows and turns that have no effect on training and are left out on "
        "purpose; a row with any other such field is refused"
    )
