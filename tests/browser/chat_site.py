"""The real application, served around a model without weights, and what a person does with it."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from playwright.sync_api import Page, expect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.engines.batching.guided_decoding import Guides
from pipeline.engines.batching.scheduler import BatchingEngine
from pipeline.models.chat.renderer import Chat
from pipeline.serving.address import listen
from pipeline.serving.app import create_app
from pipeline.serving.middleware.stack import MiddlewareStack
from pipeline.serving.page import page as chat_page
from tests.unit.serving.fake_models import ListModel, say

ANSWER = "It costs 5 € <b>& no more</b><script>window.ran = true</script>."
WARM_UP_TOKENS = 2


class Site:
    """A served model, and the application around it.

    Args:
        longest: tokens of a conversation.
        gated: the model generates a token each time that `model.gate` is released.
        middleware: fields of the application's MiddlewareStack.
    """

    def __init__(
        self,
        chat: Chat,
        model: str = "bank",
        answer: str = ANSWER,
        *,
        gated: bool = False,
        longest: int = 200,
        **middleware: Any,
    ) -> None:
        self.model = ListModel(say(chat, answer), max_seq_len=longest)
        self.model.gated = gated
        self.model.gate.release(WARM_UP_TOKENS)
        most = longest * 3 // 4
        self.engine = BatchingEngine(
            self.model, max_input_len=most, max_queue=4, guides=Guides(chat)
        )
        self.app = create_app(
            self.engine,
            chat,
            model=model,
            slots=4,
            defaults={"temperature": 0},
            middleware=MiddlewareStack(**middleware),
        )


@contextmanager
def served(app: ASGIApp) -> Iterator[str]:
    """The address of an application that runs in a thread."""
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", ws="none"))
    with listen("127.0.0.1", 0) as listening:
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        finally:
            server.should_exit = server.force_exit = True
            thread.join(10)


def two_models(chat: Chat) -> ASGIApp:
    """Two applications as one that serves two models, as a server with an adapter does."""
    sites = {name: Site(chat, name, f"I am {name}.") for name in ("tuned", "base")}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or scope["path"] == "/health/ready":
            await sites["tuned"].app(scope, receive, send)
        elif scope["path"] == "/":
            await chat_page(records=False)(scope, receive, send)
        elif scope["path"] == "/v1/models":
            await JSONResponse({"data": [{"id": name} for name in sites]})(scope, receive, send)
        else:
            body = await receive()
            read = iter([body])

            async def again() -> Message:
                return next(read, None) or await receive()

            await sites[json.loads(body["body"])["model"]].app(scope, again, send)

    return app


def ask(page: Page, text: str) -> None:
    """With the keyboard alone: the message has the focus from the start."""
    expect(page.locator("#state")).to_have_text("ready")
    expect(page.locator("#title")).not_to_have_text("Chat")
    page.keyboard.type(text)
    page.keyboard.press("Enter")


def wait_for_answers(page: Page, count: int = 1) -> None:
    expect(page.locator(".answer[aria-busy=false]")).to_have_count(count)
