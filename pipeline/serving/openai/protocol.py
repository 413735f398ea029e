"""OpenAI's requests, as far as this server supports them. Errors: errors.py; responses:
responses.py.

Requests are validated as by OpenAI's API: types are not converted, unknown fields are refused by
name, and null means the default. An unsupported field is refused unless its value has no effect.
The extensions of vLLM and NVIDIA NIM have their names.
"""

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

from pipeline.serving.openai.prompt_types import Prompts, Texts, at_most, require_neutral
from pipeline.serving.openai.response_formats import (
    MAX_GUIDED_CHOICES,
    ResponseFormat,
    StructuredOutputs,
)

MAX_STOPS = 32
MAX_STOP_LENGTH = 256  # characters
MAX_BIASES = 1024
MAX_CHOICES = 16
MAX_TOP_LOGPROBS = 20
MAX_TOOLS = 128
MAX_STOP_TOKENS = 1024
MAX_BAD_WORDS = 256
MAX_ALLOWED_TOKENS = 50_000
MAX_PASSAGES = 64  # that a request asks for
MAX_GUARDRAILS = 16  # configurations that a request names
Bias = Annotated[float, Field(ge=-100, le=100)]
TokenId = Annotated[str, Field(pattern=r"^\d{1,9}$")]
TokenIds = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(fail_fast=True)]

# Fields that this server does not support, and their values without effect: OpenAI's, then vLLM's.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "modalities": (["text"],),
    "suffix": ("",),
    "web_search_options": (),
    "best_of": (1,),
    "chat_template": (),
    "early_stopping": (False,),
    "ec_transfer_params": ({},),
    "kv_transfer_params": ({},),
    "length_penalty": (1,),
    "logits_processors": ([],),
    "logprob_token_ids": (),
    "media_io_kwargs": ({},),
    "mm_processor_kwargs": ({},),
    "priority": (0,),
    "prompt_embeds": (),
    "repetition_detection": (),
    "thinking_token_budget": (),
    "use_beam_search": (False,),
    "vllm_xargs": ({},),
    "watermarking": (False,),
}


def few_stops(value: Any) -> Any:
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
    continuous_usage_stats: bool | None = None
    # A protection of OpenAI's own network.
    include_obfuscation: Any = None


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


class ToolSubset(_Part):
    mode: Literal["auto", "required"]
    tools: Annotated[list[ToolName], Field(min_length=1), at_most(MAX_TOOLS, "tools")]


class AllowedTools(_Part):
    """A choice among some of the tools, which are all shown to the model."""

    type: Literal["allowed_tools"]
    allowed_tools: ToolSubset


class GuardrailsContext(BaseModel):
    """Variables for rails. Others are refused: flows could take them for their own."""

    model_config = ConfigDict(extra="forbid", strict=True)

    relevant_chunks: str | Texts | None = Field(None, description="retrieved text")


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
    config_ids: Annotated[Texts, at_most(MAX_GUARDRAILS, "configurations")] | None = None
    context: GuardrailsContext | None = None
    options: GuardrailsOptions | None = None

    @property
    def ids(self) -> list[str]:
        return [*([self.config_id] if self.config_id else ()), *(self.config_ids or ())]


class RagField(BaseModel):
    """Whether and where passages are looked up for the answer."""

    model_config = ConfigDict(extra="forbid", strict=True)

    enabled: bool | None = Field(None, description="false leaves out the server's default")
    collection: Annotated[str, at_most(64, "characters")] | None = None
    top_k: int | None = Field(None, ge=1, le=MAX_PASSAGES, description="passages at most")


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
        Annotated[Texts, Field(min_length=1), at_most(MAX_GUIDED_CHOICES, "choices")] | None
    ) = None
    guided_grammar: str | None = Field(None, description="a grammar in Lark or GBNF notation")


class _Request(Extensions):
    """The fields of both endpoints. For temperature and top_p, None means the model's default."""

    model: str | None = Field(None, description="optional if the server has one model")
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Annotated[str | Texts, BeforeValidator(few_stops)] | None = None
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: Annotated[dict[TokenId, Bias], at_most(MAX_BIASES, "tokens")] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    echo: bool | None = None
    nvext: Extensions | None = None
    # vLLM's
    structured_outputs: StructuredOutputs | None = None
    min_tokens: int | None = Field(None, ge=0)
    stop_token_ids: Annotated[TokenIds, at_most(MAX_STOP_TOKENS, "tokens")] | None = None
    bad_words: (
        Annotated[list[Annotated[str, at_most(256, "characters")]], at_most(MAX_BAD_WORDS, "words")]
        | None
    ) = None
    allowed_token_ids: (
        Annotated[TokenIds, Field(min_length=1), at_most(MAX_ALLOWED_TOKENS, "tokens")] | None
    ) = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    prompt_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    return_prompt_text: bool | None = None
    truncate_prompt_tokens: int | None = Field(
        None, ge=-1, description="-1 keeps as many as a prompt may have"
    )
    truncation_side: Literal["left", "right"] | None = None
    add_special_tokens: bool | None = None
    cache_salt: Annotated[str, at_most(1024, "characters"), Field(min_length=1)] | None = None
    request_id: (
        Annotated[str, at_most(64, "characters"), Field(pattern=r"^[\w.-]{1,64}$")] | None
    ) = None
    best_of: Any = None
    early_stopping: Any = None
    ec_transfer_params: Any = None
    kv_transfer_params: Any = None
    length_penalty: Any = None
    logits_processors: Any = None
    logprob_token_ids: Any = None
    priority: Any = None
    repetition_detection: Any = None
    thinking_token_budget: Any = None
    use_beam_search: Any = None
    vllm_xargs: Any = None
    watermarking: Any = None
    guardrails: GuardrailsField | None = None
    # Accepted and ignored: OpenAI's bookkeeping, and hints that do not change the output.
    guided_decoding_backend: Any = None
    metadata: Any = None
    prediction: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None
    safety_identifier: Any = None
    service_tier: Any = None
    session_id: Any = None
    store: Any = None
    stream_interval: Any = None
    user: Any = None

    @field_validator(*NEUTRAL, check_fields=False)
    @classmethod
    def _is_neutral(cls, value: Any, info: ValidationInfo) -> Any:
        return require_neutral(NEUTRAL, value, info)

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

    @property
    def wants_usage_always(self) -> bool:
        """Whether each chunk of a stream has the usage so far, too."""
        return self.wants_usage and bool(
            self.stream_options and self.stream_options.continuous_usage_stats
        )


class ChatRequest(_Request):
    """POST /v1/chat/completions. `messages` are validated in conversation.py."""

    messages: list[Any]
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    tools: Annotated[list[Tool], at_most(MAX_TOOLS, "tools")] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolName | AllowedTools | None = None
    parallel_tool_calls: bool | None = None
    include_reasoning: bool | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = (
        None
    )
    verbosity: Literal["low", "medium", "high"] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    rag: RagField | None = None
    documents: Annotated[list[dict[str, Any]], at_most(1024, "documents")] | None = None
    chat_template_kwargs: Annotated[dict[str, Any], at_most(64, "names")] | None = None
    audio: Any = None
    chat_template: Any = None
    function_call: Any = None
    functions: Any = None
    media_io_kwargs: Any = None
    mm_processor_kwargs: Any = None
    modalities: Any = None
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
    prompt_embeds: Any = None
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

    model: str | None = Field(None, description="optional if the server has one model")
    input: Prompts
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(None, ge=1)
    user: Any = None


class AdapterRequest(BaseModel):
    """POST /v1/load_lora_adapter and /v1/unload_lora_adapter, compatible with vLLM."""

    model_config = ConfigDict(extra="ignore", strict=True)

    lora_name: Annotated[str, at_most(128, "characters"), Field(pattern=r"^[\w./:@-]{1,128}$")]
    lora_path: Annotated[str, at_most(4096, "characters")] | None = None
