"""An optimizer's state as this project writes, reads and splits it, beside Megatron's own."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.training.job import Job, Trained
from pipeline.training.nemo.session import nemo_session
from tests.integration.optimizer_state_rank import SHAPES, whole_state
from tests.integration.shared_optimizer import shared_optimizer
from tests.integration.training_case import make_base, make_job


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_streamed_state_is_megatrons(ranks: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.integration.optimizer_state_rank"]
    running = [
        subprocess.Popen([*command, str(r), str(ranks), str(tmp_path)], stdout=subprocess.PIPE)
        for r in range(ranks)
    ]
    said = [process.communicate(timeout=300)[0].decode().splitlines()[-1] for process in running]
    assert [process.returncode for process in running] == [0] * ranks
    kept = [json.loads(line)["kept"] for line in said]
    assert sum(kept) == len(SHAPES), "each weight is with one rank"
    assert max(kept) - min(kept) <= 1

    theirs, ours = (torch.load(tmp_path / f"{name}.pt") for name in ("megatron", "streamed"))
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        assert torch.equal(ours[key], tensor), key
    for part, tensor in whole_state()["wide"].items():
        assert torch.equal(ours[f"optimizer.state.{part}.wide"], tensor)


class Stop(Exception):
    """Ends a run from outside."""


def train(job: Job, *, stop: int = 0) -> Trained:
    def report(point: Any) -> None:
        if point.step == stop:
            raise Stop

    from pipeline.training.nemo import trainer as nemo_training

    return nemo_training.train(job, report)


def test_split_weights_go_on_to_the_same_losses(tmp_path: Path) -> None:
    """A full fine-tune in bfloat16 with Megatron's distributed optimizer, stopped and begun again:
    the float32 weights, whose lower halves only the optimizer has, come back to the bit."""
    job = make_job(make_base(tmp_path / "base"), tmp_path, method="sft")
    runs = {
        name: replace(job, scratch=tmp_path / name / "scratch", out=tmp_path / name / "out")
        for name in ("float32", "whole", "stopped")
    }
    with nemo_session():
        in_float32 = train(runs["float32"])
        with shared_optimizer():
            at_once = train(runs["whole"])
            with pytest.raises(Stop):
                train(runs["stopped"], stop=9)
            found = train(runs["stopped"])
    assert 0 < found.resumed_from < 9
    assert [p.loss for p in found.curve] == [p.loss for p in at_once.curve]
    losses = [[p.loss for p in run.curve] for run in (at_once, in_float32)]
    np.testing.assert_allclose(*losses, rtol=5e-3)
