"""An engine in a process of its own: its answers, its death under load, and its return."""

import asyncio
import errno
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.core.errors import DataError, PipelineError
from pipeline.engines.base import Client, EngineFailed, QueueFull, Sampling
from pipeline.engines.description import Description
from pipeline.engines.process import client as link
from pipeline.engines.process import worker as engine_process
from pipeline.engines.process.supervisor import SupervisedEngine
from tests.unit.serving.fake_engine import MAX_SEQ_LEN, SLOTS
from tests.unit.serving.fake_models import mix

MADE = Description("made", "1", "fp32", {}, "0" * 64, SLOTS, 1000, MAX_SEQ_LEN)
LONG = 1500  # tokens: an answer that is not over when the process is killed


@pytest.fixture(autouse=True)
def _made_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    def arguments(folder: Path, description: Description, fd: int) -> list[str]:
        real = engine_process.arguments(folder, description, fd)
        return [sys.executable, "-m", "tests.unit.serving.fake_engine", *real[3:]]

    monkeypatch.setattr(link, "arguments", arguments)


def greedy(max_tokens: int, adapter: str | None = None) -> Sampling:
    return Sampling(max_tokens=max_tokens, temperature=0, adapter=adapter)


def alone(prompt: Sequence[int], count: int) -> list[int]:
    tokens: list[int] = []
    for _ in range(count):
        tokens.append(mix([*prompt, *tokens]))
    return tokens


async def read(engine: SupervisedEngine, prompt: Sequence[int], how: Sampling) -> list[int]:
    return [token.id async for tokens in engine.generate(prompt, how) for token in tokens]


async def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60  # a busy machine takes long to start a process
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


@asynccontextmanager
async def opened(folder: Path, max_queue: int = 100) -> AsyncIterator[SupervisedEngine]:
    engine = SupervisedEngine(folder, MADE, max_queue=max_queue)
    try:
        yield engine
    finally:
        engine.close()


def run(scenario: Callable[[], Any]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 200))


def test_answers_are_those_of_the_engine_itself(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path) as engine:
            prompts = [[1, 2], [3], [4, 5, 6], [7] * 50, [8], [9]]
            found = await asyncio.gather(*(read(engine, p, greedy(20)) for p in prompts))
            assert found == [alone(prompt, 20) for prompt in prompts]
            assert (engine.max_input_len, engine.max_seq_len) == (1000, MAX_SEQ_LEN)
            assert engine.load()[:2] == (0, 0)
            with pytest.raises(ValueError, match="tokens do not fit"):
                engine.generate([1] * 1000, greedy(MAX_SEQ_LEN))

    run(scenario)


def test_a_full_queue_refuses_and_a_cancelled_answer_makes_room(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path, max_queue=1) as engine:
            streams = [engine.generate([1], greedy(LONG)) for _ in range(SLOTS + 1)]
            await anext(streams[0])
            assert engine.load()[:2] == (SLOTS, 1)
            assert (engine.load().cache_use or 0) > 0
            with pytest.raises(QueueFull):
                engine.generate([1], greedy(1))
            for stream in streams:
                stream.cancel()
            assert await read(engine, [1], greedy(3)) == alone([1], 3)
            await wait_for(lambda: engine.load().cache_use == 0)

    run(scenario)


def test_it_comes_back_with_its_own_engine_when_another_took_the_folders_place(
    tmp_path: Path,
) -> None:
    """As `stage=build` does: what was there is put aside, and served from there."""
    folder = tmp_path / "build"
    folder.mkdir()

    async def scenario() -> None:
        async with opened(folder) as engine:
            await read(engine, [1], greedy(1))
            folder.rename(tmp_path / "aside")
            folder.mkdir()
            (folder / "dies").touch()
            os.kill(engine.pid, signal.SIGKILL)
            await wait_for(engine.down)
            await wait_for(lambda: not engine.down())
            assert await read(engine, [1], greedy(3)) == alone([1], 3)

    run(scenario)


def test_killed_under_load_it_fails_what_it_held_and_comes_back_by_itself(tmp_path: Path) -> None:
    (tmp_path / "number").write_text("3")

    async def scenario() -> None:
        async with opened(tmp_path) as engine:
            await engine.add_adapter("three", tmp_path)
            assert await read(engine, [1], greedy(4, "three")) == alone([4], 4)
            first = engine.pid
            answers = [asyncio.create_task(read(engine, [i], greedy(LONG))) for i in range(9)]
            await wait_for(lambda: (engine.load().cache_use or 0) > 0)
            os.kill(first, signal.SIGKILL)
            ends = await asyncio.gather(*answers, return_exceptions=True)
            assert [type(end) for end in ends] == [EngineFailed] * 9
            assert "exit code -9" in str(ends[0])
            assert "is being restarted" in (engine.down() or "")
            with pytest.raises(EngineFailed, match="being restarted"):
                engine.generate([1], greedy(1))
            assert engine.load() == (0, 0, 0.0)

            await wait_for(lambda: engine.down() is None)
            assert engine.pid != first
            assert engine.adapters() == ["three"]
            assert await read(engine, [1], greedy(4, "three")) == alone([4], 4)
            assert await read(engine, [1], greedy(4)) == alone([1], 4)

    run(scenario)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_processes_of_the_server_cuts_no_answer(
    tmp_path: Path, number: signal.Signals
) -> None:
    async def scenario() -> None:
        async with opened(tmp_path) as engine:
            answer = asyncio.create_task(read(engine, [1], greedy(LONG)))
            await wait_for(lambda: (engine.load().cache_use or 0) > 0)
            os.kill(engine.pid, number)
            assert await answer == alone([1], LONG)
            assert engine.down() is None

    run(scenario)


def test_an_engine_that_says_it_is_down_is_started_anew(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path) as engine:
            first = engine.pid
            assert await read(engine, [1], greedy(2)) == alone([1], 2)
            (tmp_path / "down").touch()
            await wait_for(engine.down)
            (tmp_path / "down").unlink()
            await wait_for(lambda: engine.down() is None)
            assert engine.pid != first

    run(scenario)


@pytest.mark.parametrize(
    ("file", "error", "words"),
    [
        ("dies", PipelineError, r"made engine ended while it opened .* \(exit code 3;"),
        ("refused", DataError, "the folder is refused"),
    ],
)
def test_a_process_that_cannot_open_the_engine_is_told_of_at_start(
    tmp_path: Path, file: str, error: type[Exception], words: str
) -> None:
    (tmp_path / file).touch()
    with pytest.raises(error, match=words):
        SupervisedEngine(tmp_path, MADE, max_queue=1)
    assert psutil.Process().children() == []


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda adapter: (adapter / "number").unlink(), id="gone"),
        pytest.param(lambda adapter: (adapter / "odd").touch(), id="fails unforeseen"),
    ],
)
def test_it_is_tried_again_until_it_opens_and_an_adapter_that_does_not_is_left_out(
    spoil: Callable[[Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "pipeline.serving")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "number").write_text("3")

    async def scenario() -> None:
        async with opened(tmp_path) as engine:
            await engine.add_adapter("three", adapter)
            spoil(adapter)
            (tmp_path / "dies").touch()
            os.kill(engine.pid, signal.SIGKILL)
            await wait_for(lambda: "could not be restarted" in (engine.down() or ""))
            assert "exit code 3" in (engine.down() or "")
            (tmp_path / "dies").unlink()
            await wait_for(lambda: engine.down() is None)
            assert engine.adapters() == []
            assert await read(engine, [1], greedy(2)) == alone([1], 2)

    run(scenario)
    assert "not ready" in caplog.text
    assert "without the adapter three" in caplog.text
    assert "ready: the engine's process was restarted" in caplog.text


def test_a_system_without_room_for_a_process_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Once it has no memory for a process, once no descriptor for a socket."""
    popen, socketpair = link.subprocess.Popen, link.socket.socketpair
    held = psutil.Process()
    errors = {"Popen": OSError(errno.ENOMEM, "no memory"), "pair": OSError(errno.EMFILE, "no file")}

    def starting(what: str, really: Callable[..., Any]) -> Callable[..., Any]:
        def start(*given: Any, **named: Any) -> Any:
            if error := errors.pop(what, None):
                raise error
            return really(*given, **named)

        return start

    async def scenario() -> None:
        async with opened(tmp_path) as engine:
            assert await read(engine, [1], greedy(2)) == alone([1], 2)
            before = held.num_fds()
            monkeypatch.setattr(link.subprocess, "Popen", starting("Popen", popen))
            monkeypatch.setattr(link.socket, "socketpair", starting("pair", socketpair))
            os.kill(engine.pid, signal.SIGKILL)
            await wait_for(engine.down)
            await wait_for(lambda: engine.down() is None)
            assert await read(engine, [1], greedy(2)) == alone([1], 2)
            assert errors == {}
            assert held.num_fds() == before

    run(scenario)
    assert "engine cannot be started (no memory)" in caplog.text
    assert "engine cannot be started (no file)" in caplog.text


@pytest.mark.parametrize("call", ["socketpair", "Popen"])
def test_a_first_start_without_room_is_told_of_and_holds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def fail(*given: Any, **named: Any) -> Any:
        raise OSError(errno.EMFILE, "no file")

    held = psutil.Process()
    before = held.num_fds()
    monkeypatch.setattr(link.socket if call == "socketpair" else link.subprocess, call, fail)
    with pytest.raises(PipelineError, match=r"cannot be started \(no file\): too little memory"):
        SupervisedEngine(tmp_path, MADE, max_queue=1)
    assert held.num_fds() == before


def test_adapters_that_do_not_fit_are_refused_and_removed_ones_are_gone(tmp_path: Path) -> None:
    (tmp_path / "number").write_text("3")

    async def scenario() -> None:
        async with opened(tmp_path) as engine:
            with pytest.raises(ValueError, match="is no adapter"):
                await engine.add_adapter("three", tmp_path / "nowhere")
            assert engine.adapters() == []
            await engine.add_adapter("three", tmp_path)
            await engine.remove_adapter("three")
            assert engine.adapters() == []

    run(scenario)


def test_an_error_that_nobody_foresaw_is_told_and_takes_no_place_in_the_queue(
    tmp_path: Path,
) -> None:
    (tmp_path / "number").write_text("3")

    async def scenario() -> None:
        async with opened(tmp_path) as engine:
            with pytest.raises(EngineFailed, match=r"KeyError: .*can't contain a dot"):
                await engine.add_adapter("support-1.5", tmp_path)
            assert engine.adapters() == []
            assert engine.load()[:2] == (0, 0)
            assert await read(engine, [1], greedy(2)) == alone([1], 2)

    run(scenario)


def test_an_engine_that_gives_no_answers_any_more_is_restarted(tmp_path: Path) -> None:
    """Though its process lives and does not say that it is down."""

    async def scenario() -> None:
        async with opened(tmp_path) as engine:
            first = engine.pid
            (tmp_path / "mute").touch()
            with pytest.raises(EngineFailed, match="no answers any more"):
                await read(engine, [1], greedy(2))
            await wait_for(engine.down)
            assert "gives no answers any more" in (engine.down() or "")
            (tmp_path / "mute").unlink()
            await wait_for(lambda: engine.down() is None)
            assert engine.pid != first
            assert await read(engine, [1], greedy(2)) == alone([1], 2)

    run(scenario)


def test_a_failure_of_one_request_restarts_nothing(tmp_path: Path) -> None:
    (tmp_path / "number").write_text("3000000000000000000000")  # no token id

    async def scenario() -> None:
        async with opened(tmp_path) as engine:
            first = engine.pid
            engine._adapters["odd"] = tmp_path  # the engine itself does not know it
            with pytest.raises(EngineFailed, match="KeyError"):
                await read(engine, [1], greedy(2, "odd"))
            await wait_for(lambda: engine._checking is None)
            assert engine.down() is None
            assert engine.pid == first

    run(scenario)


def test_an_adapter_after_which_the_engine_is_mute_is_refused(tmp_path: Path) -> None:
    for name in ("good", "bad"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "number").write_text("3")
    (tmp_path / "bad" / "breaks").touch()

    async def scenario() -> None:
        async with opened(tmp_path) as engine:
            await engine.add_adapter("good", tmp_path / "good")
            with pytest.raises(ValueError, match=r"gives no answer with the adapter in .*bad"):
                await engine.add_adapter("bad", tmp_path / "bad")
            assert engine.down()
            await wait_for(lambda: engine.down() is None)
            assert engine.adapters() == ["good"]
            assert await read(engine, [1], greedy(4, "good")) == alone([4], 4)
            # The same when a restarted process loads one that has changed meanwhile.
            (tmp_path / "good" / "breaks").touch()
            os.kill(engine.pid, signal.SIGKILL)
            await wait_for(engine.down)
            await wait_for(lambda: engine.down() is None)
            assert engine.adapters() == []
            assert await read(engine, [1], greedy(2)) == alone([1], 2)

    run(scenario)


def test_a_token_beyond_the_vocabulary_is_refused_at_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path) as engine:
            with pytest.raises(ValueError, match="the token 400, and the model's vocabulary"):
                engine.generate([400], greedy(2))

    run(scenario)


def of(name: str, connection: str = "1", weight: float = 1, priority: int = 0) -> Sampling:
    return replace(greedy(LONG), client=Client(name, connection, weight, priority))


def test_a_full_engine_takes_the_last_place_of_who_holds_most(tmp_path: Path) -> None:
    (tmp_path / "slow").touch()

    async def scenario() -> None:
        async with opened(tmp_path, max_queue=3) as engine:
            many = [engine.generate([1], of("many")) for _ in range(SLOTS + 3)]
            await anext(many[0])
            with pytest.raises(QueueFull):  # nobody holds fewer
                engine.generate([1], of("many"))
            one = engine.generate([1], replace(of("one"), max_tokens=2))
            with pytest.raises(QueueFull):
                await anext(many[-1])
            # Connections of one address, such as a proxy's, are treated alike.
            engine.generate([1], of("many", "2"))
            with pytest.raises(QueueFull):
                await anext(many[-2])
            many[0].cancel()
            assert [token.id async for tokens in one for token in tokens] == alone([1], 2)

    run(scenario)


def test_a_full_engine_counts_places_by_weight_and_priority(tmp_path: Path) -> None:
    (tmp_path / "slow").touch()

    async def scenario() -> None:
        async with opened(tmp_path, max_queue=3) as engine:
            many = [engine.generate([1], of("many", weight=4)) for _ in range(SLOTS + 3)]
            await anext(many[0])
            engine.generate([1], of("one"))  # SLOTS + 3 places are more than four for each of one
            with pytest.raises(QueueFull):
                await anext(many[-1])
            with pytest.raises(QueueFull):
                engine.generate([1], of("last", priority=-1))
            first = engine.generate([1], of("first", priority=1))
            with pytest.raises(QueueFull):
                await anext(many[-2])
            first.cancel()

    run(scenario)


def test_closed_it_ends_its_answers_and_leaves_no_process(tmp_path: Path) -> None:
    async def scenario() -> None:
        engine = SupervisedEngine(tmp_path, MADE, max_queue=1)
        answer = asyncio.create_task(read(engine, [1], greedy(LONG)))
        await wait_for(lambda: (engine.load().cache_use or 0) > 0)
        engine.close()
        with pytest.raises(EngineFailed, match="shutting down"):
            await answer

        # Closed while it is being restarted, it leaves none either.
        engine = SupervisedEngine(tmp_path, MADE, max_queue=1)
        first = engine.pid
        assert await read(engine, [1], greedy(1)) == alone([1], 1)
        os.kill(first, signal.SIGKILL)
        await wait_for(lambda: engine.pid != first)
        engine.close()

    run(scenario)
    assert psutil.Process().children() == []
