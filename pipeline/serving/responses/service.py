"""The routes of the Responses API."""

from functools import partial
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response

from pipeline.models.chat.renderer import Chat
from pipeline.serving.middleware import request_context
from pipeline.serving.openai.choices import ChatFormatter
from pipeline.serving.openai.completions import CompletionService
from pipeline.serving.openai.errors import ApiError, renamed, shortened
from pipeline.serving.openai.models import ServedModels
from pipeline.serving.openai.responses import Json
from pipeline.serving.responses.conversation import NAMES, chat_request, messages_of
from pipeline.serving.responses.protocol import InputRequest, ResponsesRequest
from pipeline.serving.responses.store import Kept, ResponseStore
from pipeline.serving.responses.writer import ResponseWriter


class ResponsesService:
    """
    Args:
        most: responses that are kept at most.
    """

    def __init__(self, service: CompletionService, chat: Chat, most: int) -> None:
        self._service, self._chat, self._store = service, chat, ResponseStore(most)

    async def create(self, body: ResponsesRequest, request: Request) -> Response:
        """
        Raises:
            ApiError: the request is not valid for this model.
        """
        items, messages = self._conversation(body)
        stored = bool(self._store.most) and body.store is not False
        owner = _owner()

        def keep(response: dict[str, Any]) -> None:
            if stored:
                after = messages_of(response["output"], messages)
                self._store.put(owner, response, items, after)

        new_writer = partial(self._writer, body=body, keep=keep, stored=stored)
        chat = chat_request(body, messages)
        try:
            return await self._service.chat_completion(chat, request, new_writer)
        except ApiError as error:
            raise renamed(error, NAMES) from error

    async def count(self, body: InputRequest, size: int) -> dict[str, Any]:
        """The tokens of a request's prompt.

        Raises:
            ApiError: the request is not valid for this model.
        """
        _, messages = self._conversation(body)
        try:
            prompt = await self._service.chat_prompt(chat_request(body, messages), size)
        except ApiError as error:
            raise renamed(error, NAMES) from error
        return {"object": "response.input_tokens", "input_tokens": len(prompt)}

    def find(self, name: str) -> Kept:
        """
        Raises:
            ApiError: there is none of this client.
        """
        kept = self._store.get(_owner(), name)
        if kept is None:
            hint = "" if self._store.most else " (serve.response_store=0: none is kept)"
            raise ApiError(
                404,
                f"Response with id '{shortened(name)}' not found{hint}",
                param="response_id",
                code="not_found",
            )
        return kept

    def delete(self, name: str) -> dict[str, Any]:
        """
        Raises:
            ApiError: there is none of this client.
        """
        self.find(name)
        self._store.delete(_owner(), name)
        return {"id": name, "object": "response", "deleted": True}

    def _conversation(self, body: InputRequest) -> tuple[list[Any], list[dict[str, Any]]]:
        """The items of the input, and the messages of it and of the responses before it."""
        given = body.input or []
        before: list[dict[str, Any]] = []
        if body.previous_response_id is not None:
            before = self.find(body.previous_response_id).messages
        items = (
            [{"type": "message", "role": "user", "content": given}]
            if isinstance(given, str) and given
            else list(given)
        )
        return items, messages_of(items, before)

    def _writer(
        self,
        formatter: ChatFormatter,
        model: str,
        *,
        body: ResponsesRequest,
        keep: Any,
        stored: bool,
    ) -> ResponseWriter:
        count = self._count
        return ResponseWriter(formatter, model, body, count=count, keep=keep, stored=stored)

    def _count(self, text: str) -> int:
        return len(self._chat.encode(text))


def _owner() -> str:
    """Whose a response is: the API key's; without keys there is one owner."""
    key = request_context.current().key
    return key.name if key else ""


def add_responses(
    app: FastAPI, service: CompletionService, chat: Chat, models: ServedModels, most: int
) -> None:
    """Add the routes. `most`: responses that are kept at most."""
    responses = ResponsesService(service, chat, most)

    @app.post("/v1/responses")
    async def create(body: ResponsesRequest, request: Request) -> Response:
        return await responses.create(body, request)

    @app.post("/v1/responses/input_tokens")
    async def input_tokens(body: InputRequest, request: Request) -> dict[str, Any]:
        models.find(body.model)
        return await responses.count(body, len(await request.body()))

    @app.get("/v1/responses/{name}")
    async def retrieve(name: str) -> Response:
        return Json(responses.find(name).body)

    @app.delete("/v1/responses/{name}")
    async def delete(name: str) -> dict[str, Any]:
        return responses.delete(name)

    @app.get("/v1/responses/{name}/input_items")
    async def input_items(name: str) -> Response:
        items = responses.find(name).items
        return Json({"object": "list", "data": items, "has_more": False})
