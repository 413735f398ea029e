"""POST /v1/messages: the request, as far as this server supports it, and Anthropic's errors."""

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
)

from pipeline.serving.openai.prompt_types import Texts, at_most, require_neutral
from pipeline.serving.openai.protocol import MAX_TOOLS, few_stops

PATH = "/v1/messages"
MAX_BLOCKS = 10_000
# Fields that this server does not support, and their values without effect.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "container": (),
    "context_management": (),
    "mcp_servers": ([],),
}
# Anthropic's types of errors, by status.
ERRORS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class _Part(BaseModel):
    """An object inside a request. Unknown fields in it are ignored."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)


class Tool(_Part):
    type: Literal["custom"] | None = None
    name: Annotated[str, at_most(64, "characters"), Field(pattern=r"^[\w.-]{1,64}$")]
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool | None = None


class ToolChoice(_Part):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(_Part):
    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Any = None
    display: Any = None


class OutputFormat(_Part):
    type: Literal["json_schema"]
    value: dict[str, Any] = Field(alias="schema")


class OutputConfig(_Part):
    format: OutputFormat | None = None
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None


class PromptRequest(BaseModel):
    """The fields that decide the prompt: POST /v1/messages/count_tokens."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    model: str | None = Field(None, description="optional if the server has one model")
    messages: Annotated[list[Any], at_most(MAX_BLOCKS, "messages")]
    system: str | list[Any] | None = None
    tools: Annotated[list[Tool], at_most(MAX_TOOLS, "tools")] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None
    cache_control: Any = None
    context_management: Any = None
    mcp_servers: Any = None
    chat_template_kwargs: Annotated[dict[str, Any], at_most(64, "names")] | None = None

    @field_validator(*NEUTRAL, check_fields=False)
    @classmethod
    def _is_neutral(cls, value: Any, info: ValidationInfo) -> Any:
        return require_neutral(NEUTRAL, value, info)


class MessagesRequest(PromptRequest):
    """POST /v1/messages."""

    max_tokens: int = Field(ge=1)
    stop_sequences: Annotated[Texts, BeforeValidator(few_stops)] | None = None
    stream: bool | None = None
    temperature: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    top_p: float | None = Field(None, gt=0, le=1)
    container: Any = None
    # Accepted and ignored: Anthropic's bookkeeping.
    inference_geo: Any = None
    metadata: Any = None
    service_tier: Any = None


def error_body(message: str, status: int, request_id: str | None = None) -> dict[str, Any]:
    """An error in Anthropic's format."""
    kind = ERRORS.get(status, "api_error")
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": request_id}
