"""Settings of stage=retrain: when to run the graph again on served conversations."""

from pydantic import Field

from pipeline.config.section import Place, Positive, Seconds, Section


class RetrainConfig(Section):
    """When to run the graph again on served conversations."""

    recordings: Place | None = Field(
        description="Folder of served conversations, as serve.record writes them"
    )
    min_new: Positive = Field(
        description="New conversations that a run needs; with fewer it does nothing"
    )
    every: Seconds | None = Field(
        description="Seconds between checks for new conversations; null checks once and ends"
    )
    schedule: str | None = Field(
        pattern=r"^(@[a-z]+|\S+( \S+){4})$",
        description="Schedule of the CronJob with launcher=kubernetes, in cron's form",
    )
