"""A fault in the work for one request ends that request, and the others' answers stay the same."""

import asyncio
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.engines.base import EngineFailed, Guide, Sampling
from pipeline.engines.batching import scheduler
from pipeline.engines.batching.guided_decoding import Guides
from pipeline.engines.batching.sampling import Sampler
from pipeline.engines.batching.scheduler import BatchingEngine
from pipeline.models.chat.renderer import Chat
from tests.unit.engines.batching.test_scheduler import alone, greedy, read
from tests.unit.model_folders import make_model_folder
from tests.unit.serving.fake_models import ListModel, mix

BAD = 13  # begins the prompt of the request that fails
OTHERS = ([30, 31], [40], [50, 51, 52])


class Panic(BaseException):
    """As native libraries raise it: not an Exception."""


class FaultyModel(ListModel):
    """Fails in one of its methods, whenever that works on the bad sequence."""

    step = ""

    def _check(self, step: str, rows: Sequence[Sequence[int]]) -> None:
        if step == self.step and any(row[:1] == [BAD] for row in rows):
            raise Panic(f"no {step}")

    def use_adapter(self, row: int, name: str | None) -> None:
        if self.step == "use_adapter" and name == "bad":
            raise Panic("no use_adapter")

    def check_adapter(self, folder: Path) -> None: ...

    def add_adapter(self, name: str, folder: Path) -> None: ...

    def prefill(self, row: int, ids: Sequence[int], start: int) -> np.ndarray:
        self._check("prefill", [[*self._rows[row][:start], *ids]])
        if self.step == "decode" and start and self._rows[row][0] == BAD:
            raise Panic("no decode")
        return super().prefill(row, ids, start)

    def decode(self, ids: Sequence[int], lengths: Sequence[int]) -> np.ndarray:
        self._check("decode", self._rows[: len(ids)])
        logits = super().decode(ids, lengths)
        if self.step == "logits":
            logits[[row[0] == BAD for row in self._rows[: len(ids)]]] = np.nan
        return logits

    def move(self, source: int, target: int, length: int) -> None:
        self._check("move", [self._rows[source]])
        super().move(source, target, length)


@pytest.fixture
def model() -> FaultyModel:
    return FaultyModel(mix)


@pytest.fixture
def engine(model: FaultyModel) -> Iterator[BatchingEngine]:
    engine = BatchingEngine(model, max_input_len=60, max_queue=100)
    yield engine
    engine.close()


def ask_all(engine: BatchingEngine, prompt: list[int], how: Sampling) -> BaseException | list[int]:
    """The answer to one prompt, while others are answered, before it and after it."""

    async def run() -> BaseException | list[int]:
        first, *rest = ([*prompt] for prompt in OTHERS)
        # The first ends early, so that the last one's row moves.
        asked = [(first, greedy(3)), *((other, greedy(9)) for other in rest), (prompt, how)]
        found = await asyncio.gather(
            *(read(engine, one, limit) for one, limit in asked), return_exceptions=True
        )
        assert found[:-1] == [alone(one, limit) for one, limit in asked[:-1]]
        again = await asyncio.gather(*(read(engine, [*one], greedy(6)) for one in OTHERS))
        assert again == [alone(one, greedy(6)) for one in OTHERS]
        assert engine.load() == (0, 0, 0)
        assert engine.down() is None
        return found[-1]

    return asyncio.run(asyncio.wait_for(run(), 20))


@pytest.mark.parametrize("step", ["prefill", "decode", "logits", "move"])
def test_of_the_model(engine: BatchingEngine, model: FaultyModel, step: str) -> None:
    model.step = step
    failed = ask_all(engine, [BAD, 1], greedy(9))
    assert isinstance(failed, EngineFailed)
    assert ("not finite" if step == "logits" else f"no {step}") in str(failed)


def test_of_the_model_for_the_row_of_the_prompt_that_is_read(
    engine: BatchingEngine, model: FaultyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "PROMPT_TOKENS_PER_STEP", 1)
    model.step = "move"
    failed = ask_all(engine, [BAD, *range(30)], greedy(9))
    assert isinstance(failed, EngineFailed)


def test_of_an_adapter(engine: BatchingEngine, model: FaultyModel) -> None:
    asyncio.run(engine.add_adapter("bad", Path("bad")))
    model.step = "use_adapter"
    failed = ask_all(engine, [1], dataclasses.replace(greedy(9), adapter="bad"))
    assert isinstance(failed, EngineFailed)


@pytest.mark.parametrize("count", [1, 4])  # at the prompt's end, and later
def test_of_choosing_a_token(
    engine: BatchingEngine, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    choose, chosen = Sampler.choose, list[int]()

    def failing(self: Sampler, logits: Any) -> Any:
        if self._prompt and self._prompt[0] == BAD:
            chosen.append(1)
            if len(chosen) == count:
                raise Panic("no choice")
        return choose(self, logits)

    monkeypatch.setattr(Sampler, "choose", failing)
    failed = ask_all(engine, [BAD, 1], greedy(9))
    assert isinstance(failed, EngineFailed)
    assert "no choice" in str(failed)


def test_of_scoring_a_prompt(engine: BatchingEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(request: Any, logits: Any) -> None:
        raise Panic("no score")

    monkeypatch.setattr(scheduler, "_score_prompt", failing)
    failed = ask_all(
        engine, [BAD, 1], dataclasses.replace(greedy(9), logprobs=1, prompt_logprobs=1)
    )
    assert isinstance(failed, EngineFailed)


@pytest.mark.parametrize("step", ["begin", "mask", "accept"])
def test_of_guided_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    chat = Chat.load(make_model_folder(tmp_path, "demo"))
    guides = Guides(chat)
    engine = BatchingEngine(FaultyModel(mix), max_input_len=60, max_queue=9, guides=guides)
    begin = guides.begin

    def failing(*_: Any) -> Any:
        raise Panic(f"no {step}")

    def begun(guide: Guide) -> Any:
        if step == "begin":
            failing()
        matching = begin(guide)
        monkeypatch.setattr(matching, step, failing)
        return matching

    monkeypatch.setattr(guides, "begin", begun)
    how = dataclasses.replace(greedy(9, chat.stop_ids), guide=Guide("regex", "It costs 18"))
    failed = ask_all(engine, [3], how)
    assert isinstance(failed, EngineFailed)
    assert f"no {step}" in str(failed)
    engine.close()


@pytest.mark.parametrize(
    ("prompt", "more", "words"),
    [
        ([1, 400], {}, "the prompt has the token 400, and the model's vocabulary ends at 399"),
        ([-1], {}, "the prompt has the token -1"),
        ([1], {"logit_bias": {400: 1.0}}, "logit_bias has the token 400"),
        ([1], {"logit_bias": {3: 1.0, -1: 1.0}}, "logit_bias has the token -1"),
    ],
)
def test_tokens_that_the_model_does_not_have_are_refused(
    engine: BatchingEngine, prompt: list[int], more: dict[str, Any], words: str
) -> None:
    refused = ask_all(engine, prompt, dataclasses.replace(greedy(9), **more))
    assert isinstance(refused, ValueError)
    assert words in str(refused)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_loop_that_has_ended_is_reported(
    engine: BatchingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ends(*_: Any) -> None:
        raise SystemExit

    assert engine.down() is None
    monkeypatch.setattr(engine, "_drop_cancelled", ends)
    monkeypatch.setattr(engine, "_fail", ends)

    async def run() -> None:
        engine.generate([1], greedy(1))
        engine._thread.join(10)

    asyncio.run(run())
    assert engine.down() == "the engine's loop has ended"
