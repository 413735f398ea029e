"""Settings of stage=serve: the server and its limits."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipeline.config.register import Version
from pipeline.config.retrieval import RagConfig
from pipeline.config.section import YEAR, Count, Form, Place, Seconds, Section

Origin = Annotated[
    str, Form(r"\*|https?://[^/\s,*]+", "an origin such as https://app.example.com, or *")
]


class ServeConfig(Section):
    """The server. Sizes are in bytes, times in seconds."""

    host: str = Field(description="Address to listen on; 0.0.0.0 is every network interface")
    port: int = Field(ge=0, le=65535, description="Port to listen on; 0 takes a free one")
    version: Version | None = Field(
        description="Registered version to serve, by number or alias, pulled if it is not here; "
        "null serves the last build"
    )
    follow: str | None = Field(
        min_length=1,
        description="Alias of the registry, such as champion: the server changes over to its "
        "version whenever it moves; null follows none",
    )
    follow_seconds: Seconds = Field(
        description="Seconds between looks at the alias that is followed"
    )
    max_queue: Count = Field(
        description="Requests that wait for a slot; one more is answered with status 429"
    )
    keys_file: Place | None = Field(
        description="File of API keys, written by `python -m pipeline.serving.keys`; null has none"
    )
    usage_file: Place | None = Field(
        description="File in which each key's requests and tokens of the day are kept; null counts "
        "in memory, so a restart begins anew"
    )
    audit_log: Place | None = Field(
        description="File for a line about each request, refused key and change; null has none"
    )
    tls_cert: Place | None = Field(
        description="PEM file of the server's certificate and its chain, read again when it "
        "changes; null: plain HTTP"
    )
    tls_key: Place | None = Field(description="PEM file of the certificate's private key")
    tls_client_ca: Place | None = Field(
        description="PEM file of the authorities whose certificates clients must have; null asks "
        "for none"
    )
    cors_origins: tuple[Origin, ...] = Field(
        description="Origins whose browser pages may call the API, such as "
        "https://app.example.com; * is any"
    )
    idempotency_seconds: float = Field(
        ge=0,
        le=YEAR,
        description="Seconds that the answer to a request with an Idempotency-Key is kept; 0: none",
    )
    max_connections: Count = Field(
        description="Open connections; one more is answered with status 503"
    )
    max_header_bytes: int = Field(ge=1024, le=2**26, description="Bytes of a request's headers")
    max_body_bytes: int = Field(ge=1024, le=2**34, description="Bytes of a request's body")
    header_timeout: Seconds = Field(description="Seconds until a request's headers are complete")
    body_timeout: Seconds = Field(description="Seconds until a request's body is complete")
    request_timeout: Seconds = Field(description="Seconds until an answer is complete")
    stalled_timeout: Seconds = Field(
        description="Seconds until a client that reads nothing of its answer is disconnected"
    )
    keep_alive_timeout: Annotated[int, Field(ge=1, le=YEAR)] = Field(
        description="Seconds until an idle connection is closed; must exceed the proxy's own"
    )
    drain_delay: float = Field(
        ge=0,
        le=YEAR,
        description="Seconds between the stop signal and the first refused request",
    )
    json_whitespace: int = Field(
        ge=0,
        le=20,
        description="Characters of white space that guided JSON may have at each gap; 0: none",
    )
    response_store: int = Field(
        ge=0,
        le=10**6,
        description="Responses of /v1/responses that are kept in memory; 0: none",
    )
    tool_parser: str | None = Field(
        description="How the model writes tool calls: a parser's name, module:function or none; "
        "null reads the chat template"
    )
    reasoning_parser: str | None = Field(
        description="What the model's thoughts are between: think, or another name; none shows "
        "them as text; null reads the chat template"
    )
    log_content: bool = Field(description="Whether the log includes prompts and answers")
    record: Place | None = Field(
        description="Folder for conversations whose users agreed to their use; null records none"
    )
    feedback: Place | None = Field(
        description="Folder for ratings, corrections and votes whose users agreed to their use, as "
        "rows of preferences; null takes none"
    )
    guardrails: Place | None = Field(
        description="Folder of NeMo Guardrails configurations, or of one; null checks nothing"
    )
    guardrails_default: tuple[str, ...] | None = Field(
        description="Configurations for requests whose key and model name none; null: all of them"
    )
    guardrails_by_model: dict[str, tuple[str, ...]] = Field(
        description="Configurations for the requests of a model or an adapter, by its name"
    )
    guardrails_timeout: Seconds = Field(description="Seconds that one rail may take")
    guardrails_on_error: Literal["block", "pass"] = Field(
        description="What becomes of a text that a rail cannot decide about"
    )
    rag: RagConfig
    adapters: Place | None = Field(
        description="Folder of LoRA adapters, each served under its folder's name; null has none"
    )
    adapters_seconds: Seconds | None = Field(
        description="Seconds from one look at serve.adapters to the next, which serves what is new "
        "there and drops what is gone; null reads it once, at the start"
    )

    @model_validator(mode="after")
    def _one_version(self) -> Self:
        if self.follow is not None and self.version is not None:
            raise ValueError("serve.follow says which version is served: leave serve.version out")
        if self.follow is not None and self.follow.isdigit():
            raise ValueError(
                f"serve.follow={self.follow} is a number, which never moves: give an alias, or "
                f"serve.version={self.follow}"
            )
        return self

    @model_validator(mode="after")
    def _whole_certificate(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("serve.tls_cert and serve.tls_key belong together: give both")
        if self.tls_client_ca and self.tls_cert is None:
            raise ValueError("serve.tls_client_ca needs serve.tls_cert and serve.tls_key")
        return self
