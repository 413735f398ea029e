"""Steps and epochs of a run, and its warm-up."""

import pytest

from pipeline.training.length import Length, decay_of, ends_first, resolved, steps_of, warmup_of
from tests.finetune_settings import finetune_settings


@pytest.mark.parametrize(
    ("length", "said"),
    [
        (Length(500, 64, 1000), "500 steps of 64 rows = 32 epochs of 1,000 rows"),
        (Length(47, 64, 1000), "47 steps of 64 rows = 3 epochs of 1,000 rows"),
        (Length(25, 64, 1000), "25 steps of 64 rows = 1.6 epochs of 1,000 rows"),
        (Length(1, 1, 1), "1 step of 1 row = 1 epoch of 1 row"),
        (Length(500, 64, 2_000_000), "500 steps of 64 rows = 0.016 epochs of 2,000,000 rows"),
    ],
)
def test_a_length_says_steps_and_epochs(length: Length, said: str) -> None:
    assert str(length) == said


@pytest.mark.parametrize(
    ("max_steps", "epochs", "rows", "steps"),
    [
        (500, None, 1000, 500),
        (500, None, None, 500),
        (None, 1, 1000, 16),  # the last step begins the next epoch
        (None, 2, 960, 30),
        (None, 0.1, 960, 2),
        (None, 0.001, 10, 1),
        (None, 3, None, None),
        (100, 3, None, None),
        (20, 2, 960, 20),  # what ends first
        (40, 2, 960, 30),
    ],
)
def test_steps(max_steps: int | None, epochs: float | None, rows: int | None, steps: int) -> None:
    settings = finetune_settings(max_steps=max_steps, epochs=epochs)
    assert steps_of(settings, rows) == steps


def test_what_ends_first_is_said() -> None:
    both = finetune_settings(max_steps=20, epochs=2)
    assert ends_first(both, 960) == ": finetune.max_steps=20 ends it before finetune.epochs=2"
    longer = finetune_settings(max_steps=40, epochs=2)
    assert ends_first(longer, 960) == ": finetune.epochs=2 ends it before finetune.max_steps=40"
    assert ends_first(finetune_settings(max_steps=40), 960) == ""


def test_the_warm_up_is_a_number_of_steps_or_a_share() -> None:
    share = finetune_settings(warmup_steps=None, warmup_share=0.04)
    assert [warmup_of(share, steps) for steps in (500, 100, 10, 1)] == [20, 4, 1, 0]
    assert warmup_of(finetune_settings(warmup_steps=7), 500) == 7
    assert warmup_of(finetune_settings(warmup_steps=None, warmup_share=0.99), 10) == 9


def test_the_fall_of_wsd_has_a_step_at_least() -> None:
    settings = finetune_settings(decay_share=0.1)
    assert [decay_of(settings, steps) for steps in (500, 10, 3)] == [50, 1, 1]


def test_epochs_and_as_many_steps_are_the_same_run() -> None:
    epochs = resolved(finetune_settings(max_steps=None, epochs=2), 960)
    steps = resolved(finetune_settings(max_steps=30), 960)
    assert epochs == steps
    assert (steps.max_steps, steps.warmup_steps) == (30, 2)
