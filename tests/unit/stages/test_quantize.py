from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.schema import load
from pipeline.core.errors import ConfigError, DataError
from pipeline.data.dataset import Row
from pipeline.models.architecture import Shape
from pipeline.optimization.formats import FORMATS
from pipeline.optimization.settings_checks import check_groups
from pipeline.orchestration.compose import compose
from pipeline.stages.quantize import calibration_batches

LLAMA = Shape(
    family="llama",
    layers=4,
    hidden=256,
    ffn=768,
    heads=8,
    kv_heads=4,
    head_dim=32,
    vocab=2048,
    max_positions=512,
    rope_theta=10_000.0,
    rope_scaling=None,
    norm_eps=1e-5,
    tied=False,
    qkv_bias=False,
    attention_dropout=0.0,
    initializer_range=0.02,
)


def rows_of(lengths: list[int]) -> list[Row]:
    """Rows whose tokens tell the row and the place: 1000 * row + place."""
    return [
        Row([], [1000 * (row + 1) + place for place in range(length)], [1] * length, "f:1")
        for row, length in enumerate(lengths)
    ]


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=30),
    st.integers(1, 30),
    st.integers(1, 9),
    st.integers(1, 50),
)
def test_batches_hold_each_drawn_row_whole_and_nothing_but_tokens_of_rows(
    lengths: list[int], count: int, batch_size: int, max_length: int
) -> None:
    rows = rows_of(lengths)
    batches = calibration_batches(
        rows, count=count, batch_size=batch_size, max_length=max_length, seed=3
    )
    filled = [ids for batch in batches for ids in batch]
    assert len(filled) == min(count, len(rows))
    assert len({ids[0] for ids in filled}) == len(filled)  # no row twice
    for batch in batches:
        assert len(batch) <= batch_size
        assert len({len(ids) for ids in batch}) == 1
    known = {token for row in rows for token in row.input_ids}
    for ids in filled:
        own = rows[ids[0] // 1000 - 1].input_ids[:max_length]
        assert ids[: len(own)] == own
        assert known.issuperset(ids)
        assert len(ids) <= max_length


def test_the_seed_decides_which_rows_are_drawn() -> None:
    rows = rows_of([5] * 50)
    options = {"count": 10, "batch_size": 4, "max_length": 8}
    first = calibration_batches(rows, seed=1, **options)
    assert first == calibration_batches(rows, seed=1, **options)
    assert first != calibration_batches(rows, seed=2, **options)


def test_an_empty_training_split_is_refused() -> None:
    with pytest.raises(DataError, match="training split is empty"):
        calibration_batches([], count=1, batch_size=1, max_length=8, seed=0)


@pytest.mark.parametrize(
    ("format", "wrong"),
    [
        ("int4_awq", {"hidden": 192}),
        ("int4_awq", {"ffn": 700}),
        ("int4_awq", {"heads": 3, "head_dim": 32}),
        ("nvfp4", {"ffn": 700}),
    ],
)
def test_formats_with_groups_need_whole_ones(format: str, wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="multiple of it: choose fp8"):
        check_groups(format, replace(LLAMA, **wrong))
    check_groups("fp8", replace(LLAMA, **wrong))
    check_groups(format, LLAMA)


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("quantize.exclude=[]", "must name lm_head"),
        ("quantize.format=fp4", "quantize.format"),
        ("quantize.compare=[int3]", "quantize.compare"),
        ("quantize.calibration.rows=0", "quantize.calibration.rows"),
    ],
)
def test_wrong_settings_are_refused(override: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        load(compose([override]))


def test_a_quantized_cache_on_an_unquantized_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="set kv_cache=none"):
        load(compose(["quantize=none", "quantize.kv_cache=fp8"]))


@pytest.mark.parametrize("name", FORMATS)
def test_every_option_is_of_its_format(name: str) -> None:
    assert load(compose([f"quantize={name}"])).quantize.format == name
    assert Path(f"conf/quantize/{name}.yaml").is_file()
