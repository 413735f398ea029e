"""Values of JSON, without what a parser of JSON silently loses."""

import json
from typing import Any, NoReturn

from pipeline.data.row_formats import shown
from pipeline.models.chat.messages import Unusable

BAD = "bad JSON"


def parse_json(text: str) -> object:
    """A value of JSON.

    Raises:
        Unusable: it is not JSON, has a key twice of which one would have no effect, or NaN.
    """
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise Unusable(BAD, f"{error.msg} at column {error.colno}") from error
    except Unusable:
        raise
    except (ValueError, RecursionError) as error:  # a number too long, or nesting too deep
        raise Unusable(BAD, str(error)) from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = shown(next(key for key in found if keys.count(key) > 1))
        raise Unusable(BAD, f"the field {twice} is there twice in one object", twice)
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise Unusable(BAD, f"{name} is not JSON: write null or a number")
