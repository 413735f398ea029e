"""OpenAI's requests and errors, as far as this server supports them. Responses: responses.py.

Requests are validated as by OpenAI's API: types are not converted, unknown fields are refused by
name, and null means the default. An unsupported field is refused unless its value has no effect.
The extensions of vLLM and NVIDIA NIM (class Extensions) have their names.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError

from pipeline.serving.openai.prompt_types import Prompts, at_most

MAX_STOPS = 4
MAX_STOP_LENGTH = 256  # characters
MAX_BIASES = 1024
MAX_MESSAGE = 1000  # characters
MAX_SHOWN = 200  # characters of a client's value in a message
MAX_CHOICES = 16
MAX_TOP_LOGPROBS = 20
MAX_TOOLS = 128
MAX_GUARDRAILS = 16  # configurations that a request names
MAX_GUIDED_CHOICES = 1000  # llguidance supports at most 2,000
Bias = Annotated[float, Field(ge=-100, le=100)]
TokenId = Annotated[str, Field(pattern=r"^\d{1,9}$")]

# Fields of OpenAI's API that this server does not support, and their values without effect.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "best_of": (1,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "modalities": (["text"],),
    "reasoning_effort": ("none",),
    "suffix": ("",),
    "verbosity": ("medium",),
    "web_search_options": (),
}


def _stops(value: Any) -> Any:
    """One text or few, all short: each is looked for after each token."""
    stops = value if isinstance(value, list) else [value]
    if len(stops) > MAX_STOPS:
        raise PydanticCustomError(
            "too_many", "at most {limit} stop strings are allowed", {"limit": MAX_STOPS}
        )
    if any(isinstance(stop, str) and len(stop) > MAX_STOP_LENGTH for stop in stops):
        raise PydanticCustomError(
            "too_many", "a stop string has at most {limit} characters", {"limit": MAX_STOP_LENGTH}
        )
    if not all(isinstance(stop, str) for stop in stops):
        raise PydanticCustomError("stops", "give a text or a list of texts")
    return value


class _Part(BaseModel):
    """An object inside a request. Unknown fields in it are ignored."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)


class StreamOptions(_Part):
    include_usage: bool | None = None


class TextFormat(_Part):
    type: Literal["text"]


class JsonFormat(_Part):
    type: Literal["json_object"]


class Schema(_Part):
    name: str
    value: dict[str, Any] = Field(alias="schema")


class SchemaFormat(_Part):
    type: Literal["json_schema"]
    json_schema: Schema


class Function(_Part):
    name: Annotated[str, at_most(64, "characters"), Field(pattern=r"^[\w.-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(_Part):
    type: Literal["function"]
    function: Function


class FunctionName(_Part):
    name: str


class ToolName(_Part):
    type: Literal["function"]
    function: FunctionName


class GuardrailsContext(BaseModel):
    """Variables for rails. Others are refused: flows could take them for their own."""

    model_config = ConfigDict(extra="forbid", strict=True)

    relevant_chunks: str | list[str] | None = Field(None, description="retrieved text")


class GuardrailsLog(BaseModel):
    """What the response reports. There is no text in it, which could be what was blocked."""

    model_config = ConfigDict(extra="forbid", strict=True)

    activated_rails: bool | None = None
    llm_calls: bool | None = None


class GuardrailsOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    log: GuardrailsLog | None = None


class GuardrailsField(BaseModel):
    """NeMo Guardrails' field: configurations that apply beside those that the server requires."""

    model_config = ConfigDict(extra="forbid", strict=True)

    config_id: str | None = None
    config_ids: Annotated[list[str], at_most(MAX_GUARDRAILS, "configurations")] | None = None
    context: GuardrailsContext | None = None
    options: GuardrailsOptions | None = None

    @property
    def ids(self) -> list[str]:
        return [*([self.config_id] if self.config_id else ()), *(self.config_ids or ())]


class Extensions(BaseModel):
    """Fields of vLLM and NIM. NIM accepts them at the top level and in `nvext`."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    top_k: int | None = Field(None, ge=-1, description="0 and -1 keep all tokens")
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    ignore_eos: bool | None = None
    guided_json: str | dict[str, Any] | None = Field(None, description="a JSON schema")
    guided_regex: str | None = None
    guided_choice: (
        Annotated[list[str], Field(min_length=1), at_most(MAX_GUIDED_CHOICES, "choices")] | None
    ) = None
    guided_grammar: str | None = Field(None, description="a grammar in Lark or GBNF notation")


class _Request(Extensions):
    """The fields of both endpoints. For temperature and top_p, None means the model's default."""

    model: str
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Annotated[str | list[str], BeforeValidator(_stops)] | None = None
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: Annotated[dict[TokenId, Bias], at_most(MAX_BIASES, "tokens")] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    nvext: Extensions | None = None
    guardrails: GuardrailsField | None = None
    # Accepted and ignored: OpenAI's bookkeeping, and hints that do not change the output.
    metadata: Any = None
    prediction: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None
    safety_identifier: Any = None
    service_tier: Any = None
    store: Any = None
    user: Any = None

    @field_validator(*NEUTRAL, check_fields=False)
    @classmethod
    def _is_neutral(cls, value: Any, info: Any) -> Any:
        if value is not None and value not in NEUTRAL[info.field_name]:
            raise PydanticCustomError(
                "unsupported",
                "this server does not support {name}: leave it out",
                {"name": info.field_name},
            )
        return value

    def get(self, name: str) -> Any:
        """A field's value at the top level, else in `nvext`; None if it is in neither."""
        value = getattr(self, name, None)
        return getattr(self.nvext, name, None) if value is None else value

    @property
    def stops(self) -> list[str]:
        """Stop strings, without empty ones, which would end every choice at once."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [stop for stop in given if stop]

    @property
    def wants_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)


class ChatRequest(_Request):
    """POST /v1/chat/completions. `messages` are validated in conversation.py."""

    messages: list[Any]
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    response_format: (
        Annotated[TextFormat | JsonFormat | SchemaFormat, Field(discriminator="type")] | None
    ) = None
    tools: Annotated[list[Tool], at_most(MAX_TOOLS, "tools")] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolName | None = None
    parallel_tool_calls: bool | None = None
    audio: Any = None
    function_call: Any = None
    functions: Any = None
    modalities: Any = None
    reasoning_effort: Any = None
    verbosity: Any = None
    web_search_options: Any = None

    @property
    def limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def num_logprobs(self) -> int | None:
        """Number of alternatives to return for each token; None for no log-probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(_Request):
    """POST /v1/completions. A prompt is text or token ids, or a list of either."""

    prompt: Prompts
    max_tokens: int | None = Field(None, ge=0, description="0 only with echo")
    logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    echo: bool | None = None
    best_of: Any = None
    suffix: Any = None

    @property
    def prompts(self) -> list[str | list[int]]:
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]  # type: ignore[list-item]
        return self.prompt  # type: ignore[return-value]

    @property
    def num_logprobs(self) -> int | None:
        return self.logprobs


class EmbeddingRequest(BaseModel):
    """POST /v1/embeddings. An input is text or token ids, or a list of either."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str
    input: Prompts
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(None, ge=1)
    user: Any = None


class AdapterRequest(BaseModel):
    """POST /v1/load_lora_adapter and /v1/unload_lora_adapter, compatible with vLLM."""

    model_config = ConfigDict(extra="ignore", strict=True)

    lora_name: Annotated[str, at_most(128, "characters"), Field(pattern=r"^[\w./:@-]{1,128}$")]
    lora_path: Annotated[str, at_most(4096, "characters")] | None = None


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(BaseModel):
    """The body of every error response; see error_body."""

    error: ErrorDetail


def error_body(
    message: str,
    kind: str = "invalid_request_error",
    *,
    param: str | None = None,
    code: str | None = None,
) -> dict[str, Any]:
    """Messages and names that quote a client's megabytes are cut."""
    param = param if param is None else shortened(param)
    return {
        "error": {"message": shortened(message, 1000), "type": kind, "param": param, "code": code}
    }


def shortened(text: str, most: int = MAX_SHOWN) -> str:
    return text if len(text) <= most else f"{text[:most]}…"


class ApiError(Exception):
    """An error response in OpenAI's format."""

    def __init__(self, status: int, message: str, **fields: Any) -> None:
        super().__init__(message)
        self.status = status
        self.body = error_body(message, **fields)


def invalid(param: str, message: str, code: str = "invalid_value") -> ApiError:
    """An error about one field's value."""
    return ApiError(400, message, param=param, code=code)


# pydantic's types of errors, and what is wrong in our words. {…} are values of its context.
WORDS: Mapping[str, str] = {
    "missing": "is missing",
    "string_type": "must be a text",
    "string_too_long": "has more than {max_length} characters",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "list_type": "must be a list",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "greater_than": "must be greater than {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than": "must be less than {lt:g}",
    "less_than_equal": "must be at most {le:g}",
    "too_short": "must have at least {min_length} items",
    "too_long": "must have at most {max_length} items",
    "literal_error": "must be one of {expected}",
    "enum": "must be one of {expected}",
    "string_pattern_mismatch": "has characters that are not allowed, or too many",
    "union_tag_invalid": "must have a type that is one of {expected_tags}",
    "union_tag_not_found": "must have a type",
    "string_unicode": "must be valid Unicode",
}
# Names in a location that are of pydantic's types and not of fields.
_INNER = re.compile(r"[\[(]|^(str|int|float|bool|dict|list|literal|none|nullable|[A-Z]\w*)$")


def explain(errors: list[Any]) -> dict[str, Any]:
    """The error body for a request that is not valid, from pydantic's list of errors."""
    first = errors[0]
    # The location is "body", the field, and then branches of a union and fields inside.
    place = [str(part) for part in first["loc"][1:]]
    param = place[0] if place and isinstance(first["loc"][1], str) else None
    if first["type"] == "json_invalid":
        return error_body("the body is not valid JSON: send a JSON object")
    if first["type"] == "extra_forbidden":
        param = ".".join(place)
        return error_body(
            f"Unrecognized request argument supplied: {shortened(param)}",
            param=param,
            code="unknown_parameter",
        )
    if param is None:
        return error_body("the body must be a JSON object, sent as Content-Type: application/json")
    if first["type"] == "missing" and len(place) == 1:
        return error_body(
            f"Missing required parameter: '{param}'", param=param, code="missing_required_parameter"
        )
    code = "unsupported_parameter" if first["type"] == "unsupported" else "invalid_value"
    inner = [part for part in place[1:] if not _INNER.search(part)]
    at = f" (at {shortened('.'.join(inner))})" if inner else ""
    return error_body(f"Invalid '{param}': {_words(errors, param)}{at}", param=param, code=code)


def _words(errors: list[Any], param: str) -> str:
    """What is wrong with one field; for a union, the kinds that it takes."""
    kinds = [error["type"] for error in errors if error["loc"][1] == param]
    wanted = [WORDS[kind].removeprefix("must be ") for kind in kinds if kind.endswith("_type")]
    if len(wanted) > 1 and len(wanted) == len(kinds):
        return "must be " + " or ".join(dict.fromkeys(wanted))
    first = errors[0]
    if first["type"] in WORDS:
        return WORDS[first["type"]].format_map(first.get("ctx") or {})
    # Messages of our own validators are plain already.
    return first["msg"] if first["type"] in OURS else "has a value that is not allowed"


OURS = frozenset({"unsupported", "too_many", "prompts", "stops"})
