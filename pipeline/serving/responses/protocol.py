"""POST /v1/responses: the request, as far as this server supports it."""

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError

from pipeline.serving.openai.prompt_types import Texts, at_most, require_neutral
from pipeline.serving.openai.protocol import (
    MAX_BIASES,
    MAX_TOOLS,
    MAX_TOP_LOGPROBS,
    Extensions,
    Function,
    FunctionName,
    few_stops,
)
from pipeline.serving.openai.response_formats import JsonFormat, TextFormat

MAX_ITEMS = 10_000
Id = Annotated[str, at_most(128, "characters")]

# Fields that this server does not support, and their values without effect.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "background": (False,),
    "context_management": ([],),
    "conversation": (),
    "max_tool_calls": (),
    "prompt": (),
}
# Parts of a response that clients can ask for. The first is supported; reasoning is never hidden.
INCLUDES = ("message.output_text.logprobs", "reasoning.encrypted_content")


class _Part(BaseModel):
    """An object inside a request. Unknown fields in it are ignored."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)


class SchemaFormat(_Part):
    """As in chat completions, but flat."""

    type: Literal["json_schema"]
    name: str | None = None
    value: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class TextSettings(_Part):
    format: (
        Annotated[TextFormat | JsonFormat | SchemaFormat, Field(discriminator="type")] | None
    ) = None
    verbosity: Literal["low", "medium", "high"] | None = None


class Reasoning(_Part):
    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: Any = None  # thoughts are shown whole
    generate_summary: Any = None


class FunctionTool(Function):
    type: Literal["function"]


class FunctionChoice(FunctionName):
    type: Literal["function"]


class AllowedTools(_Part):
    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[FunctionChoice], Field(min_length=1), at_most(MAX_TOOLS, "tools")]


class StreamOptions(_Part):
    include_obfuscation: Any = None  # a protection of OpenAI's own network


class InputRequest(BaseModel):
    """The fields that decide the prompt."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    model: str | None = Field(None, description="optional if the server has one model")
    input: str | Annotated[list[Any], at_most(MAX_ITEMS, "items")] | None = None
    instructions: str | None = None
    previous_response_id: Id | None = None
    tools: Annotated[list[FunctionTool], at_most(MAX_TOOLS, "tools")] | None = None
    tool_choice: Literal["none", "auto", "required"] | FunctionChoice | AllowedTools | None = None
    parallel_tool_calls: bool | None = None
    text: TextSettings | None = None
    reasoning: Reasoning | None = None
    truncation: Literal["auto", "disabled"] | None = None
    conversation: Any = None
    chat_template_kwargs: Annotated[dict[str, Any], at_most(64, "names")] | None = None

    @field_validator(*NEUTRAL, check_fields=False)
    @classmethod
    def _is_neutral(cls, value: Any, info: ValidationInfo) -> Any:
        return require_neutral(NEUTRAL, value, info)


class ResponsesRequest(InputRequest, Extensions):
    """POST /v1/responses. Fields of vLLM have its names."""

    max_output_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    include: Annotated[Texts, at_most(16, "parts")] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    store: bool | None = None
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Annotated[str | Texts, BeforeValidator(few_stops)] | None = None
    logit_bias: Annotated[dict[str, float], at_most(MAX_BIASES, "tokens")] | None = None
    background: Any = None
    context_management: Any = None
    max_tool_calls: Any = None
    prompt: Any = None
    # Accepted and ignored: OpenAI's bookkeeping.
    metadata: dict[str, Any] | None = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None
    safety_identifier: Any = None
    service_tier: Any = None
    user: Any = None

    @field_validator("include")
    @classmethod
    def _is_known(cls, value: list[str] | None) -> list[str] | None:
        for part in value or ():
            if part not in INCLUDES:
                raise PydanticCustomError(
                    "unsupported", "this server's responses have no {part}", {"part": part[:80]}
                )
        return value
