"""Token rows, the order of samples, and padding."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.training.batches import (
    SampleOrder,
    TokenRows,
    collate,
    pack,
    packed_length,
    padded_length,
    validation_batches,
)

LENGTHS = np.random.default_rng(0).integers(5, 60, 37)


def order(seed: int = 1, batch_size: int = 4) -> SampleOrder:
    return SampleOrder(LENGTHS, batch_size, seed)


def test_the_samples_of_a_step_do_not_depend_on_the_steps_before() -> None:
    in_sequence = order()
    rows = [in_sequence.rows(step).tolist() for step in range(40)]
    assert [order().rows(step).tolist() for step in (39, 3, 17)] == [rows[39], rows[3], rows[17]]


def test_each_epoch_sees_every_row_once() -> None:
    # 37 windows of 8 batches of 4 rows are 32 epochs of 37 rows.
    seen = np.concatenate([order().rows(step) for step in range(37 * 8)])
    assert np.bincount(seen).tolist() == [32] * 37


def test_the_seed_changes_the_order_and_nothing_else_does() -> None:
    assert order(seed=1).sha256(20) == order(seed=1).sha256(20)
    assert order(seed=1).sha256(20) != order(seed=2).sha256(20)


def test_rows_of_like_length_share_a_batch() -> None:
    lengths = np.random.default_rng(1).integers(5, 60, 1000)
    grouped = SampleOrder(lengths, 16, 1)
    padded = sum(16 * lengths[grouped.rows(step)].max() for step in range(60))
    used = sum(lengths[grouped.rows(step)].sum() for step in range(60))
    assert padded < 1.15 * used  # with rows as they come it is 1.75


def rows() -> TokenRows:
    return TokenRows.of(
        [([7, 8, 9], [0, 1, 1]), ([1, 2, 3, 4, 5], [1, 0, 0, 0, 1]), ([6, 6], [0, 1])]
    )


def test_labels_and_their_mask_are_the_tokens_one_further() -> None:
    batch = collate(rows(), np.array([1, 0]), length=6)
    assert batch.tokens.tolist() == [[1, 2, 3, 4, 0, 0], [7, 8, 0, 0, 0, 0]]
    assert batch.labels.tolist() == [[2, 3, 4, 5, 0, 0], [8, 9, 0, 0, 0, 0]]
    # The mask of a row's first token falls away: nothing predicts it.
    assert batch.loss_mask.tolist() == [[0, 0, 0, 1, 0, 0], [1, 1, 0, 0, 0, 0]]
    assert rows().trained_tokens([1, 0]) == 3


def test_ranks_share_a_batch_and_its_length() -> None:
    chosen = np.array([0, 1, 2, 0])
    parts = [collate(rows(), chosen, length=4, part=slice(rank, None, 2)) for rank in (0, 1)]
    whole = collate(rows(), chosen, length=4)
    assert parts[0].tokens.tolist() == whole.tokens[[0, 2]].tolist()
    assert parts[1].tokens.tolist() == whole.tokens[[1, 3]].tolist()


@pytest.mark.parametrize(("multiple", "length"), [(1, 4), (8, 8), (3, 6)])
def test_padding_is_to_the_longest_row_and_a_multiple(multiple: int, length: int) -> None:
    assert padded_length(rows(), np.array([0, 1, -1]), multiple) == length


def test_validation_takes_every_row_once_and_fills_up_with_nothing() -> None:
    batches = validation_batches(5, 4)
    assert [b.tolist() for b in batches] == [[0, 1, 2, 3], [4, -1, -1, -1]]
    filled = collate(rows(), np.array([0, -1]), length=2)
    assert filled.loss_mask[1].sum() == 0


def test_saved_rows_are_read_back(tmp_path: Path) -> None:
    rows().save(tmp_path)
    read = TokenRows.load(tmp_path)
    assert len(read) == 3
    assert read.sha256 == rows().sha256
    assert read.lengths.tolist() == [3, 5, 2]


@given(st.lists(st.integers(2, 90), min_size=1, max_size=40), st.integers(8, 64), st.integers(1, 4))
def test_packs_hold_each_row_once_within_their_length(
    lengths: list[int], pack_length: int, ranks: int
) -> None:
    tokens, chosen = np.array(lengths), np.array([*range(len(lengths)), -1, -1])
    packs = pack(tokens, chosen, pack_length=pack_length, ranks=ranks)
    assert sorted(np.concatenate(packs).tolist()) == list(range(len(lengths)))
    assert len(packs) % ranks == 0
    longest = max(pack_length, max(lengths) - 1)
    assert packed_length(tokens, [p for p in packs if len(p)], 1) <= longest


def test_a_row_longer_than_a_pack_has_the_others_packed_as_long() -> None:
    """All of a step are padded to it anyway."""
    lengths = np.array([8193, *[301] * 63])
    packs = pack(lengths, np.arange(64), pack_length=1024, ranks=1)
    assert len(packs) == 4
    assert packed_length(lengths, packs, 64) == 8192
