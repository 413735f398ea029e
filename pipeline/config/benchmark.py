"""Settings of stage=benchmark."""

from pydantic import Field

from pipeline.config.section import Batch, Count, Section, Tokens


class BenchmarkConfig(Section):
    """The load that is sent to the server."""

    concurrency: tuple[Batch, ...] = Field(
        min_length=1, description="Requests at once, one measurement each"
    )
    requests: Count = Field(description="Requests of a measurement")
    max_tokens: Tokens = Field(
        description="Tokens of an answer; null: evaluate.max_new_tokens, for the same answers"
    )
