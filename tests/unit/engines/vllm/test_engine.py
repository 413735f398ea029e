"""What vLLM is asked for a request of ours, and what its outputs are as tokens of ours.

vLLM itself is not installed here: names and shapes are those of its SamplingParams,
StructuredOutputsParams, Logprob and RequestOutput in 0.24.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.engines.base import EngineFailed, Guide, Sampling, Token
from pipeline.engines.gpu_requests import guide_arguments, tokens_of
from pipeline.engines.vllm import engine as vllm_engine
from pipeline.engines.vllm.engine import sampling_arguments


@dataclass
class Logprob:
    logprob: float
    rank: int


@dataclass
class Completion:
    token_ids: list[int]
    logprobs: Any = None


@dataclass
class Output:
    outputs: list[Completion]
    finished: bool = False
    prompt_logprobs: Any = None


@dataclass
class Engine:
    """As far as a stream knows its engine."""

    aborted: list[str] = field(default_factory=list)
    forgotten: int = 0

    def abort(self, request: str) -> None:
        self.aborted.append(request)

    def forget(self, stream: Any) -> None:
        self.forgotten += 1


def test_answers_end_where_the_request_says_and_text_is_ours() -> None:
    asked = sampling_arguments(Sampling(max_tokens=7, temperature=0, stop_ids=frozenset({9, 2})))
    assert asked["stop_token_ids"] == [2, 9]
    assert asked["ignore_eos"] is True
    assert asked["detokenize"] is False
    assert asked["max_tokens"] == 7
    for name in ("seed", "logit_bias", "logprobs", "prompt_logprobs"):
        assert asked[name] is None


def test_every_wish_reaches_vllm_by_its_own_name() -> None:
    wishes = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 3,
        "min_p": 0.1,
        "seed": 4,
        "frequency_penalty": 0.2,
        "presence_penalty": 0.3,
        "repetition_penalty": 1.1,
        "logit_bias": {5: -100.0},
        "logprobs": 2,
        "min_tokens": 4,
    }
    asked = sampling_arguments(
        Sampling(max_tokens=9, allowed_ids=frozenset({8, 3}), **wishes)  # type: ignore[arg-type]
    )
    assert {name: asked[name] for name in wishes} == wishes
    assert asked["allowed_token_ids"] == [3, 8]


def test_log_probabilities_of_the_prompt() -> None:
    how = Sampling(max_tokens=1, logprobs=3, prompt_logprobs=0)
    assert sampling_arguments(how)["prompt_logprobs"] == 0


@pytest.mark.parametrize(
    ("guide", "expected"),
    [
        (Guide("json_object", ""), {"json_object": True}),
        (Guide("json_schema", '{"type": "object"}'), {"json": '{"type": "object"}'}),
        (Guide("regex", "a+"), {"regex": "a+"}),
        (Guide("lark", 'start: "a"'), {"grammar": 'start: "a"'}),
    ],
)
def test_guides(guide: Guide, expected: dict[str, Any]) -> None:
    assert guide_arguments(guide) == expected


def test_the_chosen_token_is_only_among_the_likeliest_if_it_is_one() -> None:
    here = {7: Logprob(-2.5, 9), 3: Logprob(-0.1, 1), 4: Logprob(-1.0, 2)}
    assert tokens_of([7], [here], 2) == [Token(7, -2.5, ((3, -0.1), (4, -1.0)), 9)]
    assert tokens_of([3], [here], 1) == [Token(3, -0.1, ((3, -0.1),), 1)]
    assert tokens_of([8, 3], [None, here], 0) == [Token(8), Token(3, -0.1, (), 1)]
    assert tokens_of([1, 2], None, 0) == [Token(1), Token(2)]


def stream(outputs: AsyncIterator[Output], engine: Engine, **how: Any) -> Any:
    sampling = Sampling(max_tokens=5, **how)
    return vllm_engine._Stream(engine, "r1", outputs, [1, 2], sampling)  # type: ignore[arg-type]


def test_a_stream_is_read_to_the_end_of_vllms_own() -> None:
    ended = []

    async def outputs() -> AsyncIterator[Output]:
        yield Output([Completion([5])], prompt_logprobs=[None, {2: Logprob(-0.5, 1)}])
        yield Output([Completion([6, 7])], finished=True)
        ended.append(True)

    async def run() -> None:
        engine = Engine()
        answer = stream(outputs(), engine)
        assert await anext(answer) == [Token(5)]
        assert answer.prompt_logprobs == [Token(1), Token(2, -0.5, (), 1)]
        assert await anext(answer) == [Token(6), Token(7)]
        assert ended == [True]  # else vLLM would abort a request that is finished
        with pytest.raises(StopAsyncIteration):
            await anext(answer)
        answer.cancel()
        assert (engine.aborted, engine.forgotten > 0) == ([], True)

    asyncio.run(run())


def test_cancelling_aborts_the_request_once() -> None:
    async def outputs() -> AsyncIterator[Output]:
        yield Output([Completion([5])])
        yield Output([Completion([])], finished=True)

    async def run() -> None:
        engine = Engine()
        answer = stream(outputs(), engine)
        await anext(answer)
        answer.cancel()
        answer.cancel()
        assert engine.aborted == ["r1"]
        assert [tokens async for tokens in answer] == []

    asyncio.run(run())


@pytest.mark.parametrize(
    ("raised", "expected"),
    [(RuntimeError("the core died"), EngineFailed), (ValueError("a bad schema"), ValueError)],
)
def test_a_dead_core_is_a_failed_engine_and_a_bad_wish_is_not(
    raised: Exception, expected: type[Exception]
) -> None:
    async def outputs() -> AsyncIterator[Output]:
        raise raised
        yield

    async def run() -> None:
        engine = Engine()
        with pytest.raises(expected, match=str(raised)):
            await anext(stream(outputs(), engine))
        assert engine.forgotten == 1

    asyncio.run(run())


def test_what_the_scheduler_says_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    loggers = SimpleNamespace(StatLoggerBase=object)
    monkeypatch.setitem(sys.modules, "vllm.v1.metrics.loggers", loggers)
    seen = vllm_engine._Seen()
    logger = seen.logger(None)
    said = SimpleNamespace(num_running_reqs=3, num_waiting_reqs=2, kv_cache_usage=0.25)
    logger.record(said, None, engine_idx=0)
    logger.record(None, None)  # a step without the scheduler says nothing new
    assert (seen.running, seen.waiting, seen.cache_use) == (3, 2, 0.25)
