"""Bodies of requests: what can be counted is counted before it is parsed.

Parsing happens on the event loop and cannot be interrupted. A body of 4 MiB can hold a million
values, which take half a second to parse; the few values of a long text take a millisecond.
"""

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

SMALL_BYTES = 1 << 16  # needs no counting: 5 ms at most
MAX_STRINGS = 20_000  # with the names of fields
MAX_VALUES = 50_000  # beyond the token ids of the longest prompt
MAX_FIELDS = 100  # there are about 50


class BodyRefused(HTTPException):
    """The body has too many values to be parsed; the message says so."""

    def __init__(self, text: str) -> None:
        super().__init__(400, text)


def bounded_route(max_input_len: int) -> type[APIRoute]:
    """A class of routes that parse only bodies with a limited number of values."""

    class BoundedRequest(Request):
        async def json(self) -> Any:
            body = await self.body()
            require_few_values(body, MAX_VALUES + max_input_len)
            found = json.loads(body)
            if isinstance(found, dict) and len(found) > MAX_FIELDS:
                raise BodyRefused(f"the body has {len(found)} fields: at most {MAX_FIELDS} exist")
            return found

    class BoundedRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handler = super().get_route_handler()

            async def bounded(request: Request) -> Response:
                return await handler(BoundedRequest(request.scope, request.receive))

            return bounded

    return BoundedRoute


def require_few_values(body: bytes, max_values: int) -> None:
    """
    Raises:
        BodyRefused: the body has more strings or values than any request needs.
    """
    if len(body) <= SMALL_BYTES:
        return
    if body.count(b'"') // 2 <= MAX_STRINGS and _values(body) <= max_values:
        return  # even if none of them is in a text
    if b"\\" in body:
        body = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    if body.count(b'"') // 2 > MAX_STRINGS:
        raise BodyRefused(f"the body has more than {MAX_STRINGS} strings: send smaller requests")
    if _values(body) > max_values and _values(b"".join(body.split(b'"')[::2])) > max_values:
        raise BodyRefused(f"the body has more than {max_values} values: send smaller requests")


def _values(text: bytes) -> int:
    return text.count(b",") + text.count(b"[") + text.count(b"{")


def size_of(value: Any, most: int) -> int:
    """Characters and values in a value of JSON; stops counting when there are more than `most`."""
    size, left = 0, [value]
    while left and size <= most:
        found = left.pop()
        size += 1
        if isinstance(found, str):
            size += len(found)
        elif isinstance(found, list | dict):
            size += len(found)
            if size <= most:
                inner = [*found, *found.values()] if isinstance(found, dict) else found
                left += [one for one in inner if isinstance(one, str | list | dict)]
    return size
