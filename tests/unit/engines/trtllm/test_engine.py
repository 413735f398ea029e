"""What TensorRT-LLM's LLM API is asked for a request of ours, and what its outputs become.

TensorRT-LLM cannot be installed here: the names, defaults and behaviour of the stand-ins below are
those of its documentation of 1.2 (LLM API reference; executor/result.py, sampling_params.py).
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pipeline.core.errors import DataError
from pipeline.engines.base import EngineFailed, Guide, QueueFull, Sampling, Token
from pipeline.engines.gpu_requests import guide_arguments, tokens_of
from pipeline.engines.trtllm.engine import (
    TrtllmEngine,
    check_adapter,
    sampling_arguments,
)


@dataclass(kw_only=True)
class SamplingParams:
    end_id: int | None = None
    pad_id: int | None = None
    max_tokens: int = 32
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool = False
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    temperature: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logprobs: int | None = None
    guided_decoding: Any = None
    detokenize: bool = True

    @property
    def greedy(self) -> bool:
        """Its _greedy_decoding."""
        return self.top_k in (None, 1) and self.top_p in (None, 0.0)


@dataclass(kw_only=True)
class GuidedDecodingParams:
    json: str | None = None
    regex: str | None = None
    grammar: str | None = None
    json_object: bool = False


@dataclass
class Logprob:
    logprob: float
    rank: int | None = None


@dataclass
class Completion:
    token_ids_diff: list[int]
    logprobs_diff: list[dict[int, Logprob]] = field(default_factory=list)


class Result:
    """A RequestOutput: an iterator over itself, with the newest tokens in outputs[0]."""

    def __init__(self, parts: Sequence[Any]) -> None:
        self.parts = list(parts)
        self.aborted = False
        self.outputs: list[Completion] = []

    def abort(self) -> None:
        self.aborted = True

    async def __aiter__(self) -> AsyncIterator["Result"]:
        for part in self.parts:
            await asyncio.sleep(0)
            if isinstance(part, Exception):
                raise part
            if self.aborted:
                return
            self.outputs = [part]
            yield self


class LLM:
    made: list["LLM"]

    def __init__(self, model: str, **arguments: Any) -> None:
        if "bogus" in arguments:
            raise ValueError("unknown argument bogus")
        self.model, self.arguments = model, arguments
        self.asked: list[tuple[list[int], SamplingParams, Any]] = []
        self.results: list[Result] = []
        self.parts: list[Any] = [Completion([5]), Completion([6, 7])]
        self.down = False
        LLM.made.append(self)

    def generate_async(
        self, inputs: Any, sampling_params: Any, *, lora_request: Any, streaming: bool
    ) -> Result:
        assert streaming
        self.asked.append((inputs, sampling_params, lora_request))
        self.results.append(Result(self.parts))
        return self.results[-1]

    def shutdown(self) -> None:
        self.down = True


class EngineLLM(LLM):
    """tensorrt_llm._tensorrt_engine.LLM."""


class RequestError(RuntimeError):
    """Of one request, not of the engine."""


@dataclass
class LoRARequest:
    lora_name: str
    lora_int_id: int
    lora_path: str = ""


@dataclass(kw_only=True)
class LoraConfig:
    lora_target_modules: list[str]
    max_lora_rank: int
    max_loras: int
    max_cpu_loras: int


@pytest.fixture(autouse=True)
def _tensorrt_llm(monkeypatch: pytest.MonkeyPatch) -> None:
    LLM.made = []
    contents: dict[str, dict[str, Any]] = {
        "tensorrt_llm": {"LLM": LLM, "SamplingParams": SamplingParams},
        "tensorrt_llm._tensorrt_engine": {"LLM": EngineLLM},
        "tensorrt_llm.sampling_params": {"GuidedDecodingParams": GuidedDecodingParams},
        "tensorrt_llm.executor.utils": {"RequestError": RequestError},
        "tensorrt_llm.executor.request": {"LoRARequest": LoRARequest},
        "tensorrt_llm.lora_manager": {"LoraConfig": LoraConfig},
    }
    for name, members in contents.items():
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)


def opened(folder: Path, backend: str = "pytorch", lora_rank: int = 0) -> TrtllmEngine:
    return TrtllmEngine(
        folder,
        backend,
        {"max_batch_size": 2, "tensor_parallel_size": 2},
        max_input_len=8,
        max_seq_len=16,
        max_queue=1,
        lora_rank=lora_rank,
    )


def how(**wishes: Any) -> Sampling:
    return Sampling(**{"max_tokens": 7, "stop_ids": frozenset({9, 2}), **wishes})


def test_an_answer_ends_where_the_request_says_and_gives_out_its_last_token() -> None:
    asked = SamplingParams(**sampling_arguments(how(temperature=0), "pytorch"))
    assert (asked.max_tokens, asked.stop_token_ids, asked.end_id) == (7, [2, 9], -1)
    assert asked.include_stop_str_in_output
    assert not asked.detokenize
    assert asked.greedy
    assert asked.logprobs is None
    assert sampling_arguments(how(stop_ids=frozenset()), "pytorch")["stop_token_ids"] is None


def test_chance_is_said_in_full_for_left_out_it_would_be_greedy_and_one_seed() -> None:
    first, second = (SamplingParams(**sampling_arguments(how(), "pytorch")) for _ in "12")
    assert not first.greedy
    assert (first.temperature, first.top_p, first.top_k) == (1.0, 1.0, 0)
    assert first.seed != second.seed
    wishes = {"temperature": 0.5, "top_p": 0.9, "top_k": 3, "seed": 4}
    asked = sampling_arguments(how(**wishes), "pytorch")
    assert {name: asked[name] for name in wishes} == wishes


def test_wishes_beyond_it_reach_the_backend_that_can() -> None:
    wishes = {
        "min_p": 0.1,
        "frequency_penalty": 0.2,
        "presence_penalty": 0.3,
        "repetition_penalty": 1.1,
    }
    asked = sampling_arguments(how(**wishes), "tensorrt")
    assert {name: asked[name] for name in wishes} == wishes
    with pytest.raises(ValueError, match="min_p: TensorRT-LLM's PyTorch backend"):
        sampling_arguments(how(min_p=0.1), "pytorch")


@pytest.mark.parametrize(("wanted", "asked"), [(0, 1), (3, 3)])
def test_log_probabilities(wanted: int, asked: int) -> None:
    assert sampling_arguments(how(logprobs=wanted), "pytorch")["logprobs"] == asked
    here = {7: Logprob(-2.5, 9), 3: Logprob(-0.1, 1), 4: Logprob(-1.0, 2)}
    top = ((3, -0.1), (4, -1.0))[:wanted]
    assert tokens_of([7], [here], wanted) == [Token(7, -2.5, top, 9)]
    assert tokens_of([7, 8], None, wanted) == [Token(7), Token(8)]


@pytest.mark.parametrize(
    ("guide", "expected"),
    [
        (Guide("json_object", ""), GuidedDecodingParams(json_object=True)),
        (Guide("json_schema", "{}"), GuidedDecodingParams(json="{}")),
        (Guide("regex", "a+"), GuidedDecodingParams(regex="a+")),
        (Guide("lark", "x"), GuidedDecodingParams(grammar="x")),
    ],
)
def test_guides(guide: Guide, expected: GuidedDecodingParams) -> None:
    assert GuidedDecodingParams(**guide_arguments(guide)) == expected


def test_token_ids_go_in_and_come_out(tmp_path: Path) -> None:
    async def scenario() -> None:
        engine = opened(tmp_path)
        stream = engine.generate([1, 2], how(guide=Guide("regex", "a")))
        assert engine.load()[:2] == (1, 0)
        assert [token.id async for tokens in stream for token in tokens] == [5, 6, 7]
        assert engine.load()[:2] == (0, 0)
        (llm,) = LLM.made
        ((ids, params, lora),) = llm.asked
        assert (ids, params.guided_decoding.regex, lora) == ([1, 2], "a", None)
        assert llm.model == str(tmp_path)
        assert llm.arguments["tensor_parallel_size"] == 2
        assert llm.arguments["trust_remote_code"] is False
        engine.close()
        assert llm.down

    asyncio.run(scenario())


def test_engines_that_were_built_are_opened_by_their_own_class(tmp_path: Path) -> None:
    engine = opened(tmp_path, "tensorrt")
    (llm,) = LLM.made
    assert isinstance(llm, EngineLLM)
    assert llm.model == str(tmp_path / "engine")
    assert llm.arguments["tokenizer"] == str(tmp_path)
    assert engine.features == {"penalties"}
    assert opened(tmp_path).features == {"logprobs", "guide"}


def test_what_it_does_not_take_is_the_users_to_mend(tmp_path: Path) -> None:
    sizes = {"max_input_len": 8, "max_seq_len": 16, "max_queue": 1}
    arguments = {"max_batch_size": 2, "bogus": 1}
    with pytest.raises(DataError, match=r"cannot serve .* bogus"):
        TrtllmEngine(tmp_path, "pytorch", arguments, **sizes)


def test_a_cancelled_answer_is_aborted_and_a_full_queue_refuses(tmp_path: Path) -> None:
    async def scenario() -> None:
        engine = opened(tmp_path)
        streams = [engine.generate([1], how()) for _ in range(3)]
        with pytest.raises(QueueFull):
            engine.generate([1], how())
        for stream in streams:
            stream.cancel()
            stream.cancel()
        assert all(result.aborted for result in LLM.made[0].results)
        await asyncio.sleep(0.01)
        assert engine.load()[:2] == (0, 0)
        assert [tokens async for tokens in streams[0]] == []

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("raised", "expected", "down"),
    [
        (RuntimeError("a worker died"), EngineFailed, True),
        (ValueError("bad"), ValueError, False),
        (RequestError("its LoRA adapter does not load"), ValueError, False),
    ],
)
def test_a_dead_worker_is_a_failed_engine_and_a_bad_wish_is_not(
    tmp_path: Path, raised: Exception, expected: type[Exception], down: bool
) -> None:
    async def scenario() -> None:
        engine = opened(tmp_path)
        LLM.made[0].parts = [Completion([5]), raised]
        stream = engine.generate([1], how())
        with pytest.raises(expected, match=str(raised)):
            [tokens async for tokens in stream]
        assert (engine.down() is not None) == down

    asyncio.run(scenario())


def write_adapter(folder: Path, **changes: Any) -> Path:
    folder.mkdir()
    settings = {"peft_type": "LORA", "r": 8, "target_modules": ["q_proj"], **changes}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    (folder / "adapter_model.safetensors").touch()
    return folder


def test_adapters(tmp_path: Path) -> None:
    async def scenario() -> None:
        engine = opened(tmp_path, lora_rank=8)
        assert "adapters" in engine.features
        config = LLM.made[0].arguments["lora_config"]
        assert (config.max_lora_rank, len(config.lora_target_modules)) == (8, 7)
        for name in ("a", "b"):
            await engine.add_adapter(name, write_adapter(tmp_path / name))
        async for _ in engine.generate([1], how(adapter="b")):
            pass
        ((_, _, lora),) = LLM.made[0].asked
        assert lora == LoRARequest("b", 2, str(tmp_path / "b"))
        await engine.remove_adapter("a")
        assert engine.adapters() == ["b"]
        with pytest.raises(ValueError, match="the adapter 'a' is no longer loaded"):
            engine.generate([1], how(adapter="a"))

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"r": 16}, r"has rank 16, and engine\.lora_rank is 8"),
        ({"use_dora": True}, "not plain LoRA"),
        ({"peft_type": "IA3"}, "not plain LoRA"),
        ({"r": None}, "says r=null"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern, which TensorRT-LLM ignores"),
        ({"layer_replication": [[0, 1]]}, "says layer_replication"),
    ],
)
def test_adapters_that_it_would_only_stumble_over_later(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        check_adapter(write_adapter(tmp_path / "a", **changes), 8)
