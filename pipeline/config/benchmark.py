"""Settings of stage=benchmark."""

from pydantic import Field

from pipeline.config.section import Positive, Section


class BenchmarkConfig(Section):
    """The load that is sent to the server."""

    concurrency: tuple[Positive, ...] = Field(
        min_length=1, description="Requests at once, one measurement each"
    )
    requests: Positive = Field(description="Requests of a measurement")
    max_tokens: Positive = Field(
        description="Tokens of an answer; set it as evaluate.max_new_tokens to get the same answers"
    )
