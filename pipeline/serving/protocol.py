"""OpenAI's requests and responses, as far as this server speaks them.

Requests are checked as OpenAI's API does: an unknown field is refused by name, null is the default,
and a field that we do not support is refused unless it asks for nothing. Responses are plain dicts:
the openai package's own types take seconds to import, and the tests hold ours against them.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError

MAX_STOPS = 4
MAX_CHOICES = 16
TokenIds = Annotated[list[int], Field(min_length=1)]
Texts = Annotated[list[str], Field(min_length=1)]

# Fields of OpenAI's API that ask for nothing when they hold one of these.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
}


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="ignore")

    include_usage: bool = False


class _Request(BaseModel):
    """What both endpoints take. Temperature and top_p of None are the model's own."""

    model_config = ConfigDict(extra="forbid")

    model: str
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, description="as vLLM and NIM; 0 and -1 keep all tokens")
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    # Said for OpenAI's own bookkeeping.
    metadata: Any = None
    prompt_cache_key: Any = None
    safety_identifier: Any = None
    service_tier: Any = None
    store: Any = None
    user: Any = None
    # See NEUTRAL.
    frequency_penalty: Any = None
    logit_bias: Any = None
    logprobs: Any = None
    presence_penalty: Any = None

    @field_validator(*NEUTRAL, check_fields=False)
    @classmethod
    def _is_neutral(cls, value: Any, info: Any) -> Any:
        if value is not None and value not in NEUTRAL[info.field_name]:
            raise PydanticCustomError(
                "unsupported", "this server does not support {name}", {"name": info.field_name}
            )
        return value

    @property
    def stops(self) -> list[str]:
        """Stop strings; empty ones, which would end every answer, are none."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [stop for stop in given if stop]

    @field_validator("stop")
    @classmethod
    def _has_few_stops(cls, value: Any) -> Any:
        if isinstance(value, list) and len(value) > MAX_STOPS:
            raise PydanticCustomError(
                "too_many", "at most {limit} stop strings are allowed", {"limit": MAX_STOPS}
            )
        return value

    @property
    def wants_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)


class ChatRequest(_Request):
    """POST /v1/chat/completions. `messages` are checked where they are rendered."""

    messages: list[Any]
    max_completion_tokens: int | None = Field(None, ge=1)
    function_call: Any = None
    functions: Any = None
    modalities: Any = None
    parallel_tool_calls: Any = None
    response_format: Any = None
    tool_choice: Any = None
    tools: Any = None
    top_logprobs: Any = None

    @property
    def limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens


class CompletionRequest(_Request):
    """POST /v1/completions; a prompt is text or token ids, or a list of either."""

    prompt: str | TokenIds | Texts | Annotated[list[TokenIds], Field(min_length=1)]
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


def error_body(
    message: str,
    kind: str = "invalid_request_error",
    *,
    param: str | None = None,
    code: str | None = None,
) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def explain(errors: list[Any]) -> dict[str, Any]:
    """The body for a request that does not validate, from pydantic's list of errors."""
    first = errors[0]
    # Behind "body" comes the field; what follows it names branches of a union.
    param = next((str(part) for part in first["loc"][1:2] if isinstance(part, str)), None)
    if first["type"] == "json_invalid":
        return error_body("the body of the request is not valid JSON")
    if first["type"] == "extra_forbidden":
        return error_body(
            f"Unrecognized request argument supplied: {param}",
            param=param,
            code="unknown_parameter",
        )
    if param is None:
        return error_body("the body must be a JSON object, sent as Content-Type: application/json")
    if first["type"] == "missing":
        return error_body(
            f"Missing required parameter: '{param}'", param=param, code="missing_required_parameter"
        )
    code = "unsupported_parameter" if first["type"] == "unsupported" else "invalid_value"
    return error_body(f"Invalid '{param}': {first['msg']}", param=param, code=code)


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def model_card(model: str, created: int, max_seq_len: int) -> dict[str, Any]:
    return {
        "id": model,
        "object": "model",
        "created": created,
        "owned_by": "pipeline",
        "max_model_len": max_seq_len,
    }


Kind = Literal["chat", "text"]
_OBJECTS = {"chat": "chat.completion", "text": "text_completion"}


def response(
    kind: Kind,
    head: dict[str, Any],
    choices: list[tuple[str, str]],
    counts: dict[str, int],
) -> dict[str, Any]:
    """A whole answer. `head`: id, created, model. `choices`: text and finish reason of each."""
    listed = []
    for index, (text, reason) in enumerate(choices):
        message = {"role": "assistant", "content": text, "refusal": None}
        body = {"message": message} if kind == "chat" else {"text": text}
        listed.append({"index": index, **body, "logprobs": None, "finish_reason": reason})
    return {**head, "object": _OBJECTS[kind], "choices": listed, "usage": counts}


def chunk(
    kind: Kind, head: dict[str, Any], index: int, text: str | None, reason: str | None
) -> dict[str, Any]:
    """A piece of a streamed answer. In chat, `text` is None in the first, which names the role."""
    if kind == "text":
        body: dict[str, Any] = {"text": text or ""}
    elif text is None:
        body = {"delta": {"role": "assistant", "content": ""}}
    else:
        body = {"delta": {"content": text} if text else {}}
    choice = {"index": index, **body, "logprobs": None, "finish_reason": reason}
    return {**head, "object": _chunk_object(kind), "choices": [choice]}


def usage_chunk(kind: Kind, head: dict[str, Any], counts: dict[str, int]) -> dict[str, Any]:
    return {**head, "object": _chunk_object(kind), "choices": [], "usage": counts}


def _chunk_object(kind: Kind) -> str:
    return "chat.completion.chunk" if kind == "chat" else _OBJECTS[kind]
