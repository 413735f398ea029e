"""Gemma 3, its text model: Gemma 2's layer with norms of queries and keys, and two rotary bases."""

from dataclasses import replace

from pipeline.models.families.gemma2 import (
    ATTENTION_POST_NORM,
    ATTENTION_SCALE,
    FEED_FORWARD_NORM,
    FEED_FORWARD_POST_NORM,
    FEED_FORWARD_UP,
    GEMMA2,
)
from pipeline.models.families.llama import DOWN, INPUT_NORM, OUTPUT, QKV
from pipeline.models.families.qwen3 import KEY_NORM, QUERY_NORM
from pipeline.models.families.record import Layer, NemoModel, Number, Window

_NEMO = "nemo.collections.llm.gpt.model.gemma3"

GEMMA3 = GEMMA2.named(
    "gemma3_text",
    "Gemma 3",
    "Gemma3ForCausalLM",
    model_type="gemma3_text",
    layer=Layer(
        (
            INPUT_NORM,
            QKV,
            QUERY_NORM,
            KEY_NORM,
            OUTPUT,
            ATTENTION_POST_NORM,
            FEED_FORWARD_NORM,
            FEED_FORWARD_UP,
            DOWN,
            FEED_FORWARD_POST_NORM,
        )
    ),
    keys=replace(GEMMA2.keys, rope_theta_default=1_000_000.0),
    # The general configuration lacks a field that its own code reads; all sizes are given.
    nemo=NemoModel(model=f"{_NEMO}:Gemma3Model", config=f"{_NEMO}:Gemma3Config1B", two_bases=True),
    numbers={
        "query_pre_attn_scalar": replace(ATTENTION_SCALE, nemo=None),
        "rope_local_base_freq": Number("window_rope_theta", default=10_000.0),
        "attn_logit_softcapping": Number("attention_cap"),
        "final_logit_softcapping": Number("logit_cap"),
    },
    window=Window(
        default=4096, by_layer=True, full_every=6, full_every_key="sliding_window_pattern"
    ),
    # With scaled frequencies of the layers that have no window; the others keep theirs.
    ropes=("linear", "yarn", "llama3"),
)
