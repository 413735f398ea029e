"""The routes of the Messages API."""

from functools import partial
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response

from pipeline.serving.anthropic.conversation import NAMES, chat_request
from pipeline.serving.anthropic.protocol import PATH, MessagesRequest, PromptRequest
from pipeline.serving.anthropic.writer import MessageWriter
from pipeline.serving.openai.completions import CompletionService
from pipeline.serving.openai.errors import ApiError, renamed
from pipeline.serving.openai.models import ServedModels


def add_messages(app: FastAPI, service: CompletionService, models: ServedModels) -> None:
    """Add the routes."""

    @app.post(PATH)
    async def create(body: MessagesRequest, request: Request) -> Response:
        new_writer = partial(MessageWriter, streams=bool(body.stream))
        try:
            return await service.chat_completion(chat_request(body), request, new_writer)
        except ApiError as error:
            raise renamed(error, NAMES) from error

    @app.post(f"{PATH}/count_tokens")
    async def count_tokens(body: PromptRequest, request: Request) -> dict[str, Any]:
        models.find(body.model)
        try:
            prompt = await service.chat_prompt(chat_request(body), len(await request.body()))
        except ApiError as error:
            raise renamed(error, NAMES) from error
        return {"input_tokens": len(prompt)}
