"""On a GPU a step is launched before the last one's tokens are known: answers stay the same.

The model is computed on the CPU; tokens of a step come as a tensor, as they do from a GPU.
"""

import asyncio
import random
from collections.abc import Sequence

import pytest
import torch

from pipeline.engines.base import EngineFailed, Sampling
from pipeline.engines.batching.gpu_sampling import GpuLogits
from pipeline.engines.batching.scheduler import BatchingEngine

VOCABULARY, STOP = 50, 7


class Model:
    """The next token follows from all tokens of a row, so a token in a wrong row changes it."""

    slots, max_seq_len, vocab_size = 4, 64, VOCABULARY
    on_gpu, prompt_tokens_per_step = True, 5

    def __init__(self) -> None:
        self.rows: list[list[int]] = [[] for _ in range(self.slots + 1)]
        self.ahead = 0  # steps whose tokens the host had not seen
        self.fail_at = -1

    def read(self, row: int, ids: Sequence[int], start: int) -> GpuLogits:
        self.rows[row][start:] = ids
        return self._logits([row])

    def advance(self, ids: Sequence[int] | torch.Tensor, lengths: Sequence[int]) -> GpuLogits:
        if isinstance(ids, torch.Tensor):
            self.ahead += 1
            ids = ids.tolist()
            if self.ahead == self.fail_at:
                raise RuntimeError("out of memory")
        for row, (token, length) in enumerate(zip(ids, lengths, strict=True)):
            assert length <= self.max_seq_len
            self.rows[row][length - 1 :] = [token]
            assert len(self.rows[row]) == length
        return self._logits(range(len(ids)))

    def move(self, source: int, target: int, length: int) -> None:
        self.rows[target] = self.rows[source][:length]

    def _logits(self, rows: Sequence[int]) -> GpuLogits:
        found = torch.zeros(len(rows), VOCABULARY)
        for place, row in enumerate(rows):
            found[place, following(self.rows[row])] = 30.0
        return GpuLogits(found)


def following(tokens: Sequence[int]) -> int:
    return sum((i + 1) * token for i, token in enumerate(tokens)) * 31 % VOCABULARY


def expected(prompt: list[int], most: int) -> list[int]:
    tokens = list(prompt)
    while len(tokens) - len(prompt) < most and tokens[len(prompt) :][-1:] != [STOP]:
        tokens.append(following(tokens))
    return tokens[len(prompt) :]


async def read(engine: BatchingEngine, prompt: list[int], how: Sampling, most: int) -> list[int]:
    found: list[int] = []
    request = engine.generate(prompt, how)
    async for tokens in request:
        found += [token.id for token in tokens]
        if len(found) >= most:
            request.cancel()
            break
    return found


@pytest.mark.parametrize("fail_at", [-1, 3])
def test_answers_are_those_of_one_after_another(fail_at: int) -> None:
    model, draw = Model(), random.Random(1)
    model.fail_at = fail_at
    asked = [
        ([draw.randrange(VOCABULARY) for _ in range(draw.randint(1, 12))], draw.randint(1, 50))
        for _ in range(60)
    ]

    async def scenario() -> list[list[int]]:
        engine = BatchingEngine(model, max_input_len=20, max_queue=99)  # type: ignore[arg-type]

        async def one(number: int) -> list[int]:
            prompt, most = asked[number]
            await asyncio.sleep(number % 7 / 1000)
            # Some with a choice on the host, some drawn at random of logits that leave no choice.
            how = Sampling(
                most,
                temperature=number % 3 / 10,
                stop_ids=frozenset({STOP}),
                logprobs=0 if number % 11 == 3 else None,
            )
            cut = 3 if number % 13 == 5 else 1000  # its reader goes away
            return await read(engine, prompt, how, cut)

        found = await asyncio.gather(*(one(number) for number in range(len(asked))))
        engine.close()
        return found

    found = asyncio.run(scenario())
    for number, ((prompt, most), answer) in enumerate(zip(asked, found, strict=True)):
        wanted = expected(prompt, most)
        assert answer == wanted[: len(answer)]
        assert len(answer) == len(wanted) or number % 13 == 5
    assert model.ahead > 20


def test_logits_that_are_not_finite_end_only_their_request() -> None:
    class Broken(Model):
        def _logits(self, rows: Sequence[int]) -> GpuLogits:
            found = super()._logits(rows)
            for place, row in enumerate(rows):
                if self.rows[row][0] == 1 and len(self.rows[row]) == 9:
                    found._rows[place] = torch.nan
            return found

    async def scenario() -> list[object]:
        engine = BatchingEngine(Broken(), max_input_len=20, max_queue=99)  # type: ignore[arg-type]
        how = Sampling(20, temperature=0)
        asked = (read(engine, [first, 2, 3], how, 1000) for first in (1, 2, 3))
        found = await asyncio.gather(*asked, return_exceptions=True)
        engine.close()
        return found

    broken, *others = asyncio.run(scenario())
    assert isinstance(broken, EngineFailed)
    for first, answer in zip((2, 3), others, strict=True):
        tokens = [first, 2, 3]
        for _ in range(20):
            tokens.append(following(tokens))
        assert answer == tokens[3:]
