"""Two processes that share the model's matrices train as one does."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.models.files import copy_assets
from pipeline.training import workers as launch
from pipeline.training.job import Job, Trained
from pipeline.training.nemo import models as nemo
from pipeline.training.nemo.session import nemo_session
from tests.integration.training_case import make_base, make_job, make_rows

# Sums run in another order on two ranks: float32 agrees to about 1e-6 a step, and Adam's first
# steps, which take a gradient's sign, carry that on.
TOLERANCE = 2e-3


def train(job: Job) -> Trained:
    return launch.train_in_processes(job, lambda point: None)


@pytest.mark.parametrize("method", ["lora", "sft"])
def test_two_ranks_give_the_losses_of_one(method: str, tmp_path: Path) -> None:
    base = make_base(tmp_path / "model", odd_vocabulary=True)
    one = train(make_job(base, tmp_path / "one", method=method, max_steps=8))
    job = make_job(base, tmp_path / "two", method=method, max_steps=8, processes=2, tensor=2)
    two = train(job)
    # A row more in the embedding and in the output layer, so that both have as many.
    padding = 2 * 64 if method == "sft" else 0
    assert two.trainable_parameters == one.trainable_parameters + padding
    for name in ("loss", "validation_loss"):
        first = [getattr(p, name) for p in one.curve if getattr(p, name) is not None]
        second = [getattr(p, name) for p in two.curve if getattr(p, name) is not None]
        assert np.allclose(first, second, rtol=TOLERANCE, atol=0), (name, first, second)

    copy_assets(job.hf, job.out / "hf")
    # One process reads what two have written.
    with nemo_session():
        if method == "sft":
            model = nemo.open_checkpoint(job.out)
        else:
            model = nemo.open_checkpoint(base, adapter=job.out)
        assert nemo.logits(model, make_rows(1)[0].input_ids).isfinite().all()
