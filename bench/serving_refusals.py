"""How long large requests hold the server's event loop, field by field.

    python -m bench.serving_refusals bench/results/serving_refusals.json

Each field of each route gets values of 4 MiB in several shapes: one text, many texts, numbers,
lists, names, deep nesting; below the server's limits of values and beyond them. The application
runs in this process around a model without weights. The longest callback of the event loop is the
time during which no other request is served. Threshold: 50 ms of the processor, so that other load
on the machine changes little.
"""

import argparse
import asyncio
import gc
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from starlette.types import ASGIApp, Message

from bench.origin import origin
from pipeline.serving.anthropic.protocol import MessagesRequest, PromptRequest
from pipeline.serving.openai.protocol import (
    AdapterRequest,
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
)
from pipeline.serving.responses.protocol import InputRequest, ResponsesRequest
from pipeline.serving.routes.tokenization import DetokenizeRequest, TokenizeRequest
from pipeline.serving.scoring.protocol import RankingRequest, RerankRequest, ScoreRequest

PACKAGES = ("fastapi", "pydantic", "starlette", "tokenizers")
SIZE = 4 << 20  # serve.max_body_bytes
MOST_MS = 50.0
MODEL = "bank"
HELLO = '[{"role": "user", "content": "Hello"}]'
# Each route, its model, and the fields that a valid request needs.
ROUTES: dict[str, tuple[Any, dict[str, str]]] = {
    "/v1/chat/completions": (ChatRequest, {"messages": HELLO}),
    "/v1/completions": (CompletionRequest, {"prompt": '"a"'}),
    "/v1/embeddings": (EmbeddingRequest, {"input": '"a"'}),
    "/v1/score": (ScoreRequest, {"text_1": '"a"', "text_2": '"a"'}),
    "/v1/rerank": (RerankRequest, {"query": '"a"', "documents": '["a"]'}),
    "/v1/ranking": (RankingRequest, {"query": '{"text": "a"}', "passages": '[{"text": "a"}]'}),
    "/v1/load_lora_adapter": (AdapterRequest, {"lora_name": '"a"', "lora_path": '"/nowhere"'}),
    "/v1/unload_lora_adapter": (AdapterRequest, {"lora_name": '"a"'}),
    "/v1/messages": (MessagesRequest, {"messages": HELLO, "max_tokens": "1"}),
    "/v1/messages/count_tokens": (PromptRequest, {"messages": HELLO}),
    "/v1/responses": (ResponsesRequest, {"input": '"a"'}),
    "/v1/responses/input_tokens": (InputRequest, {"input": '"a"'}),
    "/tokenize": (TokenizeRequest, {}),
    "/detokenize": (DetokenizeRequest, {"tokens": "[1]"}),
    "/v1/chat/completions/render": (ChatRequest, {"messages": HELLO}),
    "/v1/completions/render": (CompletionRequest, {"prompt": '"a"'}),
}
# Values inside a field; the shape takes the place of @.
INSIDE: dict[str, tuple[str, ...]] = {
    "messages": (
        '[{"role": "user", "content": @}]',
        '[{"role": @, "content": "a"}]',
        '[{"role": "user", "content": [{"type": "text", "text": @}]}]',
        '[{"role": "user", "content": "a", "name": @}]',
        '[{"role": "assistant", "tool_calls": @}]',
        '[{"role": "assistant", "tool_calls": [{"id": "a", "type": "function", '
        '"function": {"name": "a", "arguments": @}}]}]',
        '[{"role": "tool", "tool_call_id": @, "content": "a"}]',
        '[{"role": "user", "content": [{"type": @}]}]',
        '[{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", '
        '"content": @}]}]',
        '[{"role": "assistant", "content": [{"type": "tool_use", "id": @, "name": "a", '
        '"input": {}}]}]',
        '[{"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "a", '
        '"input": @}]}]',
        '[{"role": "assistant", "content": [{"type": "thinking", "thinking": @}]}]',
    ),
    "system": ("[@]", '[{"type": "text", "text": @}]'),
    "tools": (
        '[{"type": "function", "function": {"name": @}}]',
        '[{"type": "function", "function": {"name": "a", "description": @}}]',
        '[{"type": "function", "function": {"name": "a", "parameters": {"enum": @}}}]',
        '[{"type": "function", "function": {"name": "a", "parameters": @}}]',
    ),
    "tool_choice": ('{"type": "function", "function": {"name": @}}',),
    "response_format": (
        '{"type": @}',
        '{"type": "json_schema", "json_schema": {"name": @, "schema": {}}}',
        '{"type": "json_schema", "json_schema": {"name": "a", "schema": {"enum": @}}}',
        '{"type": "json_schema", "json_schema": {"name": "a", "schema": @}}',
    ),
    "stream_options": ('{"include_usage": @}',),
    "nvext": ('{"guided_json": @}', '{"guided_choice": @}', '{"odd": @}'),
    "guided_json": ('{"enum": @}', '{"properties": @}'),
    "stop": ("[@]",),
    "logit_bias": ('{"1": @}',),
    "prompt": ("[@]", "[[1], @]"),
    "input": (
        "[@]",
        "[[1], @]",
        '[{"role": "user", "content": @}]',
        '[{"type": @}]',
        '[{"role": "user", "content": [{"type": "input_text", "text": @}]}]',
        '[{"type": "function_call", "call_id": "a", "name": "a", "arguments": @}]',
        '[{"type": "function_call_output", "call_id": "a", "output": @}]',
        '[{"type": "reasoning", "summary": @}]',
    ),
    "tokens": ("[@]",),
    "stop_sequences": ("[@]",),
    "text": ('{"format": {"type": "json_schema", "name": "a", "schema": @}}',),
    "output_config": ('{"format": {"type": "json_schema", "schema": @}}',),
    "output_format": ('{"type": "json_schema", "schema": @}',),
    "chat_template_kwargs": ('{"a": @}',),
    "structured_outputs": ('{"json": @}', '{"regex": @}', '{"choice": @}', '{"grammar": @}'),
}


class Body(NamedTuple):
    """A request's body, and which field and shape it tries."""

    path: str
    field: str
    shape: str
    data: bytes


def shapes(size: int) -> Iterator[tuple[str, str]]:
    """Values of `size` bytes of JSON, by name."""
    yield "text", f'"{"a" * size}"'
    yield "words", f'"{"a word, [x] " * (size // 12)}"'
    yield "escapes", f'"{chr(92)}n{(chr(92) + "n") * (size // 2 - 1)}"'
    for name, count in (("few", 19_000), ("many", size)):
        texts = min(count, size // 4)
        wide = max(1, size // texts - 3)
        yield f"{name} texts", "[" + ",".join([f'"{"a" * wide}"'] * texts) + "]"
        keys = min(count // 2, size // 12)
        yield f"{name} names", "{" + ",".join(f'"n{i}":"{i}"' for i in range(keys)) + "}"
        ids = min(count // 2, size // 8)
        yield f"{name} token names", "{" + ",".join(f'"{i}":1' for i in range(ids)) + "}"
        values = min(count + 26_000, size // 2)  # below the limit, or as many as there can be
        yield f"{name} numbers", "[" + ",".join(["1"] * values) + "]"
        yield f"{name} fractions", "[" + ",".join(["1.5"] * min(values, size // 4)) + "]"
        yield f"{name} lists", "[" + ",".join(["[]"] * min(values, size // 3)) + "]"
        yield f"{name} objects", "[" + ",".join(['{"a":1}'] * min(count // 2, size // 8)) + "]"
        yield f"{name} levels", "[" * min(values, size // 2) + "]" * min(values, size // 2)
    yield "long number", "9" * size


def bodies(
    size: int = SIZE, chosen: Callable[[str, str, str], bool] = lambda *_: True
) -> Iterator[Body]:
    """A request for each field, place in it and shape.

    chosen: whether to make the one of this path, field and shape.
    """
    values = list(shapes(size))
    for path, (model, needed) in ROUTES.items():
        for field in (*model.model_fields, "odd"):
            for frame in ("@", *INSIDE.get(field, ())):
                given = {"model": f'"{MODEL}"', **needed}
                if model is AdapterRequest:
                    del given["model"]
                elif field == "tool_choice":
                    given["tools"] = '[{"type": "function", "function": {"name": "a"}}]'
                name = field if frame == "@" else f"{field}: {frame}"
                for shape, value in values:
                    if chosen(path, name, shape):
                        fields = {**given, field: frame.replace("@", value)}
                        text = ",".join(f'"{key}":{found}' for key, found in fields.items())
                        yield Body(path, name, shape, f"{{{text}}}".encode())
        for shape, value in values:
            if chosen(path, "the body", shape):
                yield Body(path, "the body", shape, value.encode())


class Held(NamedTuple):
    """The status, and the processor time of the loop's longest callback."""

    status: int
    milliseconds: float


async def hold(app: ASGIApp, body: Body) -> Held:
    """Send a request, and measure how long it holds the loop."""
    headers = [(b"content-type", b"application/json"), (b"host", b"server")]
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST",
        "scheme": "http", "path": body.path, "raw_path": body.path.encode(), "query_string": b"",
        "root_path": "", "headers": headers, "client": ("127.0.0.1", 1), "server": ("server", 80),
    }  # fmt: skip
    given: list[Message] = [{"type": "http.request", "body": body.data, "more_body": False}]
    status = 0

    async def receive() -> Message:
        while not given:
            await asyncio.sleep(3600)
        return given.pop()

    async def send(message: Message) -> None:
        nonlocal status
        status = message.get("status", status)

    with longest_callback() as found:
        # A task, so that its steps are callbacks of the loop.
        await asyncio.create_task(_call(app, scope, receive, send))
    return Held(status, 1e3 * max(found))


async def _call(app: ASGIApp, scope: Any, receive: Any, send: Any) -> None:
    await app(scope, receive, send)


@contextmanager
def longest_callback() -> Iterator[list[float]]:
    """Processor seconds of each callback of the event loop meanwhile."""
    run, found = asyncio.Handle._run, [0.0]

    def timed(handle: asyncio.Handle) -> None:
        begin = time.thread_time()
        run(handle)
        found.append(time.thread_time() - begin)

    asyncio.Handle._run = timed  # type: ignore[method-assign, assignment]
    try:
        yield found
    finally:
        asyncio.Handle._run = run  # type: ignore[method-assign]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("output", type=Path)
    given = parser.parse_args()
    command = " ".join(["python -m bench.serving_refusals", *sys.argv[1:]])
    with tempfile.TemporaryDirectory() as folder:
        walked = asyncio.run(walk(Path(folder)))
    report = {**origin(command, PACKAGES), **walked}
    given.output.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))
    return report["longest_ms"] > MOST_MS


async def walk(folder: Path) -> dict[str, Any]:
    from pipeline.engines.batching.guided_decoding import Guides
    from pipeline.engines.batching.scheduler import BatchingEngine
    from pipeline.models.chat.renderer import Chat
    from pipeline.serving.app import create_app
    from tests.unit.model_folders import make_model_folder
    from tests.unit.serving.fake_encoders import by_path
    from tests.unit.serving.fake_models import ListModel, say

    chat = Chat.load(make_model_folder(folder, "demo"))
    model = ListModel(say(chat, "Hello."), vocab_size=chat.vocab_size, max_seq_len=256)
    engine = BatchingEngine(model, max_input_len=192, max_queue=64, guides=Guides(chat))
    app = by_path(create_app(engine, chat, model=MODEL, slots=4), model=MODEL)
    gc.collect()
    gc.freeze()  # as the server does when it is ready
    found: list[tuple[float, int, Body]] = []
    for body in bodies():
        held = await hold(app, body)
        found.append((held.milliseconds, held.status, body._replace(data=b"")))
    engine.close()
    found.sort(key=lambda one: -one[0])
    times = [one[0] for one in found]
    return {
        "bodies": len(found),
        "bytes": SIZE,
        "longest_ms": round(times[0], 1),
        "median_ms": round(statistics.median(times), 1),
        "above_threshold": sum(one > MOST_MS for one in times),
        "statuses": {
            str(code): sum(one[1] == code for one in found)
            for code in sorted({one[1] for one in found})
        },
        "slowest": [
            {
                "ms": round(ms, 1),
                "status": status,
                "path": b.path,
                "field": b.field,
                "shape": b.shape,
            }
            for ms, status, b in found[:20]
        ],
    }


if __name__ == "__main__":
    sys.exit(main())
