"""Requests as a client sends that sets nothing, and what counts as an answer."""

import pytest

from pipeline.core.errors import PipelineError
from pipeline.serving.benchmark.questions import Reply, _reply, bodies

TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes", "weight": 0}]

TOOL = {"type": "function", "function": {"name": "rate"}}


def test_a_request_names_no_sampling() -> None:
    (body,) = bodies([TURNS], [40], [[]], model="bank", sampled=False, seed=7)
    assert body.keys() == {"model", "messages", "max_tokens"}
    assert body["messages"][1] == {"role": "assistant", "content": "Yes"}


def test_where_the_server_samples_each_question_has_its_own_seed() -> None:
    found = bodies([TURNS, TURNS], [40, 30], [[], [TOOL]], model="bank", sampled=True, seed=7)
    assert [body["seed"] for body in found] == [7, 8]
    assert [body["max_tokens"] for body in found] == [40, 30]
    assert [body.get("tools") for body in found] == [None, [TOOL]]


def test_a_refusal_of_a_long_question_is_a_reply_and_any_other_is_an_error() -> None:
    choice = {"message": {"content": "Yes"}, "finish_reason": "length"}
    assert _reply("u", 200, {"choices": [choice]}) == Reply("Yes", cut=True)
    error = {"message": "too long", "code": "context_length_exceeded"}
    assert _reply("u", 400, {"error": error}) == Reply("", refused="too long")
    with pytest.raises(PipelineError, match="u returned 400: no such field"):
        _reply("u", 400, {"error": {"message": "no such field", "code": None}})
