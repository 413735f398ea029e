"""Settings of stage=retrain: when to run the graph again on served conversations."""

import re
from collections.abc import Mapping

from pydantic import Field, field_validator

from pipeline.config.section import Count, Place, Seconds, Section
from pipeline.core.errors import short


class RetrainConfig(Section):
    """When to run the graph again on served conversations."""

    recordings: Place | None = Field(
        description="Folder of served conversations, as serve.record writes them"
    )
    min_new: Count = Field(
        description="New conversations that a run needs; with fewer it does nothing"
    )
    every: Seconds | None = Field(
        description="Seconds between checks for new conversations; null checks once and ends"
    )
    schedule: str | None = Field(
        description="Schedule of the CronJob with launcher=kubernetes, in cron's form",
    )

    @field_validator("schedule")
    @classmethod
    def _cron(cls, schedule: str | None) -> str | None:
        if schedule is None or schedule in NAMED_SCHEDULES:
            return schedule
        fields = schedule.split(" ")
        if len(fields) != len(CRON):
            raise ValueError(
                'give five fields, as in "0 3 * * *" (minute, hour, day, month, weekday), or one '
                f"of {', '.join(NAMED_SCHEDULES)}"
            )
        for text, (what, low, high, names) in zip(fields, CRON, strict=True):
            if not all(_is_cron(part, low, high, names) for part in text.split(",")):
                raise ValueError(
                    f"{short(text)} is no {what}: give *, {low} to {high}, a range such as "
                    f"{low}-{high}, a step such as */2, or several with commas"
                )
        return schedule


# What Kubernetes takes: the fields with their bounds and names, and the words for common schedules.
NAMED_SCHEDULES = ("@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly")
_MONTHS = "jan feb mar apr may jun jul aug sep oct nov dec".split()
_DAYS = "sun mon tue wed thu fri sat".split()
CRON: tuple[tuple[str, int, int, Mapping[str, int]], ...] = (
    ("minute", 0, 59, {}),
    ("hour", 0, 23, {}),
    ("day of the month", 1, 31, {}),
    ("month", 1, 12, {name: place for place, name in enumerate(_MONTHS, 1)}),
    ("weekday", 0, 7, dict(zip(_DAYS, range(7), strict=True))),
)


def _is_cron(text: str, low: int, high: int, names: Mapping[str, int]) -> bool:
    """Whether a part of a field is *, a value, or a range, each with a step or without."""
    found = re.fullmatch(r"(?:[*?]|(\w+)(?:-(\w+))?)(?:/(\d{1,3}))?", text)
    if not found:
        return False
    words = [word for word in found.groups()[:2] if word is not None]
    values = [names.get(word.lower(), int(word) if _NUMBER.match(word) else -1) for word in words]
    return values == sorted(values) and all(low <= v <= high for v in values) and found[3] != "0"


_NUMBER = re.compile(r"^\d{1,3}$", re.ASCII)
