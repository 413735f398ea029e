"""Requests of one client do not make another client wait for all of them."""

import asyncio
from dataclasses import dataclass, replace

from pipeline.engines.base import Client
from pipeline.engines.batching.scheduler import BatchingEngine
from pipeline.engines.batching.turns import Turns
from tests.unit.engines.batching.test_scheduler import greedy, wait_for
from tests.unit.serving.fake_models import ListModel, mix


@dataclass
class Asked:
    client: Client


def asked(name: str, connection: str = "1", weight: float = 1, priority: int = 0) -> Asked:
    return Asked(Client(name, connection, weight, priority))


def order(waiting: list[Asked], slots: int) -> str:
    """The clients' names and connections in the order of their start; the oldest ends first."""
    turns, running, started = Turns(), list[Asked](), list[str]()
    while waiting:
        if len(running) == slots:
            running.pop(0)
        running.append(waiting.pop(turns.next(waiting, running)))
        client = running[-1].client
        started.append(client.name + (client.connection if client.connection != "1" else ""))
    return " ".join(started)


def test_clients_take_turns_in_one_slot() -> None:
    assert order([asked(name) for name in "aaaabb"], slots=1) == "a b a b a a"


def test_the_client_with_the_fewest_running_sequences_is_next() -> None:
    assert order([asked(name) for name in "aaaaaabbb"], slots=4) == "a b a b a b a a a"


def test_connections_of_one_client_take_turns() -> None:
    waiting = [asked("a"), asked("a"), asked("a"), asked("a", "2"), asked("b")]
    assert order(waiting, slots=1) == "a b a2 a a"


def test_a_client_of_twice_the_weight_has_twice_the_turns() -> None:
    waiting = [*(asked("b") for _ in range(6)), *(asked("a", weight=2) for _ in range(6))]
    assert order(waiting, slots=1) == "b a a b a a b a a b b b"


def test_running_sequences_are_shared_by_weight() -> None:
    waiting = [*(asked("b") for _ in range(20)), *(asked("a", weight=3) for _ in range(20))]
    started = order(waiting, slots=8).split()
    assert [started[i : i + 8].count("a") for i in (0, 8, 16)] == [6, 6, 6]


def test_a_higher_priority_goes_first() -> None:
    waiting = [asked("a"), asked("a"), asked("b", priority=-1), asked("c", priority=5)]
    assert order(waiting, slots=4) == "c a a b"


def test_a_client_that_was_away_does_not_catch_up() -> None:
    turns = Turns()
    flood = [asked("a") for _ in range(8)]
    for _ in range(5):
        flood.pop(turns.next(flood, []))
    waiting = [*flood, asked("b"), asked("b"), asked("b")]
    names = []
    while waiting:
        names.append(waiting.pop(turns.next(waiting, [])).client.name)
    assert "".join(names) == "bababa"


def test_one_connection_keeps_its_order() -> None:
    turns, waiting = Turns(), [asked("a") for _ in range(3)]
    assert [turns.next(waiting, []) for _ in range(3)] == [0, 0, 0]


def test_a_newcomer_gets_the_next_free_slot() -> None:
    model = ListModel(mix, slots=2)
    engine = BatchingEngine(model, max_input_len=60, max_queue=1000)
    model.gated = True
    others = replace(greedy(8), client=Client("many", "1"))

    async def run() -> None:
        flood = [engine.generate([i + 1], others) for i in range(256)]
        wait_for(lambda: engine.load().running == 2)
        single = engine.generate([300], replace(greedy(2), client=Client("one", "1")))
        model.gate.release(9)  # the first two end, and the newcomer's first step is made
        await asyncio.wait_for(anext(single), 5)
        assert sum(not stream.items.empty() for stream in flood) < 10  # of 256
        model.gated = False
        model.gate.release(1000)

    asyncio.run(run())
    engine.close()
