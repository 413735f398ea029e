"""Tokens chosen on the GPU are those that the CPU chooses (the code is the same on both)."""

import itertools

import numpy as np
import pytest
import torch

from pipeline.engines.base import EngineFailed, Sampling, Token
from pipeline.engines.batching import gpu_sampling
from pipeline.engines.batching.gpu_sampling import GpuLogits
from pipeline.engines.batching.sampling import Sampler, choose_all

WAYS = [
    {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    for temperature, top_k, top_p, min_p in itertools.product(
        (0.0, 0.7, 2.0), (0, 1, 5, 5000), (1.0, 0.9, 0.05), (0.0, 0.2)
    )
]


@pytest.mark.parametrize("few", [3, 1024])
def test_every_way_of_sampling_in_one_step(monkeypatch: pytest.MonkeyPatch, few: int) -> None:
    """few: the likeliest tokens that top_p looks at first; with 3 it must sort them all."""
    monkeypatch.setattr(gpu_sampling, "FEW", few)
    sets = [Sampling(1, seed=i, **way) for i, way in enumerate(WAYS * 4)]  # type: ignore[arg-type]
    logits = np.random.default_rng(0).normal(0, 3, (len(sets), 400)).astype(np.float32)
    wanted = choose_all([Sampler(how) for how in sets], list(logits))
    found = GpuLogits(torch.from_numpy(logits)).choose([Sampler(how) for how in sets])
    assert found == wanted
    assert len({token.id for token in found if isinstance(token, Token)}) > 50


def test_equal_logits_are_taken_in_their_order() -> None:
    how = [Sampling(1, temperature=1.0, top_p=0.5, seed=seed) for seed in range(50)]
    logits = np.zeros((50, 64), np.float32)
    found = GpuLogits(torch.from_numpy(logits)).choose([Sampler(one) for one in how])
    assert found == choose_all([Sampler(one) for one in how], list(logits))


def test_what_needs_the_host_is_chosen_there() -> None:
    how = [
        Sampling(1, temperature=0, logprobs=2),
        Sampling(1, temperature=0),
        Sampling(1, temperature=0, logit_bias={7: 100.0}),
        Sampling(1, temperature=0, repetition_penalty=1.5),
    ]
    logits = np.random.default_rng(1).normal(0, 3, (4, 64)).astype(np.float32)
    found = GpuLogits(torch.from_numpy(logits)).choose([Sampler(one, [3]) for one in how])
    assert found == choose_all([Sampler(one, [3]) for one in how], list(logits))
    assert isinstance(found[0], Token)
    assert len(found[0].top) == 2


def test_logits_that_are_not_finite_end_their_own_request() -> None:
    logits = torch.zeros(4, 16)
    logits[1, 3], logits[2] = torch.nan, -torch.inf
    samplers = [Sampler(Sampling(1, temperature=t)) for t in (0, 0, 1, 1)]
    found = GpuLogits(logits).choose(samplers)
    assert [isinstance(one, EngineFailed) for one in found] == [False, True, True, False]
