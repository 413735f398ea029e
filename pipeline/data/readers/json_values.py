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
        why = f"{error.msg.removesuffix(' at')} at column {error.colno}"
        if error.msg == "Extra data" and text[error.pos - 1 : error.pos] == "\r":
            why += "; its lines end with carriage returns alone: `sed 's/\\r/\\n/g' FILE > NEW`"
        raise Unusable(BAD, why) from error
    except Unusable:
        raise
    except RecursionError as error:
        raise Unusable(BAD, "it is nested too deeply") from error
    except ValueError as error:  # of Python's conversion
        raise Unusable(BAD, "a number has more than 4,300 digits") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = shown(next(key for key in found if keys.count(key) > 1))
        raise Unusable(BAD, f"the field {twice} is there twice in one object", twice)
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise Unusable(BAD, f"{name} is not JSON: write null or a number")
