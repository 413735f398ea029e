"""POST /tokenize, /detokenize and /v1/…/render: prompts as token ids and back, as in vLLM."""

from typing import Annotated, Any, Literal

from fastapi import FastAPI, Request
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from pipeline.models.chat.renderer import Chat
from pipeline.serving.openai.completions import CompletionService
from pipeline.serving.openai.errors import invalid, refused
from pipeline.serving.openai.models import ServedModels
from pipeline.serving.openai.prompt_types import are_token_ids, at_most
from pipeline.serving.openai.protocol import MAX_TOOLS, ChatRequest, CompletionRequest, Tool

MAX_TOKENS = 50_000  # to decode in one request


def _ids(value: Any) -> Any:
    """Checked here, as thousands of errors would take long to list."""
    if not (isinstance(value, list) and are_token_ids(value)):
        raise PydanticCustomError("prompts", "give a list of token ids")
    return value


class TokenizeRequest(BaseModel):
    """A text, or a conversation that is rendered as for /v1/chat/completions."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    model: str | None = None
    prompt: str | None = None
    messages: list[Any] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: Annotated[dict[str, Any], at_most(64, "names")] | None = None
    tools: Annotated[list[Tool], at_most(MAX_TOOLS, "tools")] | None = None


class DetokenizeRequest(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = None
    tokens: Annotated[list[Any], BeforeValidator(_ids), Field(max_length=MAX_TOKENS)]


class Tokenized(BaseModel):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class Detokenized(BaseModel):
    prompt: str


class Rendered(BaseModel):
    """What the engine would get."""

    request_id: str
    object: Literal["render"] = "render"
    model: str
    token_ids: list[int]
    prompt_text: str | None = None


def add_tokenization(
    app: FastAPI, service: CompletionService, chat: Chat, models: ServedModels, max_seq_len: int
) -> None:
    """Add the routes."""

    async def ids_of(body: TokenizeRequest, size: int) -> list[int]:
        if (body.prompt is None) == (body.messages is None):
            raise invalid("prompt", "send either prompt or messages")
        if body.prompt is not None:
            for name in ("add_generation_prompt", "continue_final_message", "tools"):
                if getattr(body, name):
                    raise invalid(name, "needs messages")
            fields = {"prompt": body.prompt, "add_special_tokens": body.add_special_tokens}
            asked = CompletionRequest.model_validate(fields)
            return (await service.completion_prompts(asked, size))[0]
        given = body.model_dump(exclude={"prompt", "return_token_strs"}, exclude_none=True)
        try:
            chat_body = ChatRequest.model_validate(given)
        except ValidationError as error:
            raise refused(error) from None
        return await service.chat_prompt(chat_body, size)

    @app.post("/tokenize")
    async def tokenize(body: TokenizeRequest, request: Request) -> Tokenized:
        models.find(body.model)
        ids = await ids_of(body, len(await request.body()))
        texts = None
        if body.return_token_strs:
            texts = [str(chat.tokenizer.id_to_token(token)) for token in ids]
        return Tokenized(count=len(ids), max_model_len=max_seq_len, tokens=ids, token_strs=texts)

    @app.post("/detokenize")
    async def detokenize(body: DetokenizeRequest) -> Detokenized:
        models.find(body.model)
        if any(not 0 <= token < chat.vocab_size for token in body.tokens):
            raise invalid("tokens", f"token ids must be from 0 to {chat.vocab_size - 1}")
        return Detokenized(prompt=chat.decode(body.tokens, control_tokens=True))

    def rendered(body: ChatRequest | CompletionRequest, ids: list[int]) -> Rendered:
        return Rendered(
            request_id=service.new_id(body),
            model=models.name_of(body.model),
            token_ids=ids,
            prompt_text=chat.decode(ids, control_tokens=True) if body.return_prompt_text else None,
        )

    @app.post("/v1/chat/completions/render")
    async def render_chat(body: ChatRequest, request: Request) -> Rendered:
        models.find(body.model)
        return rendered(body, await service.chat_prompt(body, len(await request.body())))

    @app.post("/v1/completions/render")
    async def render_completion(body: CompletionRequest, request: Request) -> list[Rendered]:
        models.find(body.model)
        prompts = await service.completion_prompts(body, len(await request.body()))
        return [rendered(body, ids) for ids in prompts]
