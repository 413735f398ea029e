"""Memory of a served model: the arithmetic by hand, and against files and figures that exist."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.config.engine import EngineConfig
from pipeline.core.errors import ConfigError, DataError
from pipeline.core.hardware import GIB
from pipeline.core.paths import ROOT
from pipeline.engines.memory import (
    Decoder,
    check_lengths,
    fit,
    footprint,
    gib,
    read_decoder,
)
from pipeline.engines.registry import ENGINES
from pipeline.orchestration.compose import compose

LLAMA_8B = Decoder(32, 4096, 14336, 32, 8, 128, 128256, 8192, tied=False)
DEMO = Decoder(4, 256, 768, 8, 4, 32, 2048, 512, tied=False)


def takes(model: Decoder, runtime: str, precision: str, **changes: float):  # type: ignore[no-untyped-def]
    usual = {"gpu": True, "slots": 16, "cache_bytes": 2.0}
    return footprint(model, ENGINES[runtime].memory, precision, **{**usual, **changes})  # type: ignore[arg-type]


def test_sizes_are_read_with_transformers_own_defaults(tmp_path: Path) -> None:
    assert read_decoder(ROOT / "data/base_model") == DEMO
    config = {
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "intermediate_size": 96,
        "vocab_size": 100,
        "max_position_embeddings": 50,
        "tie_word_embeddings": True,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read_decoder(tmp_path) == Decoder(2, 64, 96, 4, 4, 16, 100, 50, tied=True)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(DataError, match="hidden_size"):
        read_decoder(tmp_path)


def test_lengths_leave_room_for_an_answer_within_the_models_positions() -> None:
    engine = EngineConfig.model_validate(compose([])["engine"])
    assert (engine.max_input_len, engine.max_seq_len) == (256, 384)
    check_lengths(engine, 384)
    with pytest.raises(ConfigError, match=r"max_seq_len=384 is more than the 383 positions"):
        check_lengths(engine, 383)
    with pytest.raises(ConfigError, match=r"max_input_len=256 leaves no room .*max_seq_len=256"):
        check_lengths(engine.model_copy(update={"max_seq_len": 256}), 384)


def test_weights_are_those_of_the_published_model() -> None:
    # Meta's Llama 3 8B: 8,030,261,248 parameters, 266,240 of which are norms.
    assert LLAMA_8B.products + 2 * LLAMA_8B.table == 8_030_261_248 - 266_240
    assert takes(LLAMA_8B, "vllm", "bf16").weights == 2 * (8_030_261_248 - 266_240)
    # FP8 leaves embedding and output layer at 2 bytes.
    assert takes(LLAMA_8B, "vllm", "fp8").weights == LLAMA_8B.products + 4 * LLAMA_8B.table
    assert (
        takes(LLAMA_8B, "vllm", "bf16", tensor_parallel=4).weights == (8_030_261_248 - 266_240) / 2
    )
    # rank · (inputs + outputs) of the seven products of each layer.
    ends = 2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14336)
    assert LLAMA_8B.adapter(16) == 32 * 16 * ends


@pytest.mark.parametrize(
    ("precision", "cache_bytes", "tensor_parallel", "token"),
    [
        ("bf16", 2, 1, 131_072),
        ("bf16", 1, 1, 65_536),
        ("bf16", 2, 4, 32_768),
        ("bf16", 2, 16, 16_384),
    ],
)
def test_a_token_of_the_cache(
    precision: str, cache_bytes: int, tensor_parallel: int, token: int
) -> None:
    # 2 · 32 layers · 8 key-value heads · 128 · bytes; a head is not divided further.
    found = takes(
        LLAMA_8B, "vllm", precision, cache_bytes=cache_bytes, tensor_parallel=tensor_parallel
    )
    assert found.token == token


def test_an_int8_engine_of_the_demo_takes_what_its_file_does() -> None:
    weights = takes(DEMO, "onnxruntime", "int8", gpu=False, cache_bytes=4).weights
    assert weights == pytest.approx(6_300_672, rel=0.02)  # model.onnx.data of stage=build


def test_a_feed_forward_part_without_a_gate_has_two_products() -> None:
    gated = replace(LLAMA_8B, layers=1)
    plain = replace(gated, halves=1)
    assert gated.products - plain.products == 4096 * 14336
    assert gated.adapter(2) - plain.adapter(2) == 2 * (4096 + 14336)


def test_pages_need_one_whole_sequence_and_rows_need_all() -> None:
    paged = takes(LLAMA_8B, "vllm", "bf16")
    room = 10_000 * paged.token
    found = fit(LLAMA_8B, ENGINES["vllm"].memory, paged, paged.fixed + room, slots=16, length=8192)
    assert (found.longest, found.most, found.lacking) == (8192, 1, 0)
    rows = takes(LLAMA_8B, "hf", "bf16")
    found = fit(
        LLAMA_8B,
        ENGINES["hf"].memory,
        rows,
        rows.fixed + 10_000 * rows.token,
        slots=16,
        length=8192,
    )
    assert (found.longest, found.most) == (625, 1)
    assert found.lacking == pytest.approx((16 * 8192 - 10_000) * rows.token)
    nothing = fit(LLAMA_8B, ENGINES["vllm"].memory, paged, paged.fixed / 2, slots=16, length=8192)
    assert (nothing.longest, nothing.most) == (0, 0)
    assert nothing.lacking > paged.fixed / 2


def test_the_most_tokens_and_not_one_more() -> None:
    found = takes(LLAMA_8B, "vllm", "fp8")
    capacity = 24 * GIB
    tokens = found.cache_tokens(capacity)
    assert found.fixed + tokens * found.token <= capacity
    assert found.fixed + (tokens + 1) * found.token > capacity


def test_sizes_in_words() -> None:
    assert gib(3 * GIB) == "3.0 GiB"
    assert gib(5 * 2**20) == "5.0 MiB"
