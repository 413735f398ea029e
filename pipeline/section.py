"""What every part of the configuration is made of."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]


class Section(BaseModel):
    """A part of the configuration: unknown keys and changes are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def explain(error: Mapping[str, Any], section: str = "") -> str:
    """What is wrong with a field of a section, or of the whole configuration, in a line."""
    field = ".".join(str(part) for part in (section, *error["loc"]) if part != "")
    if error["type"] == "extra_forbidden":
        return f"{field} is not a setting: see `python -m pipeline --help`"
    if error["type"] == "missing":
        return f"{field} is not set: give {field}=… or choose an option that sets it"
    return f"{field}={error['input']!r}: {error['msg']}"
