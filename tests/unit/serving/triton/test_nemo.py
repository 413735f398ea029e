"""What NeMo's clients and Triton's text models ask for."""

from typing import Any

import numpy as np
import pytest

from pipeline.serving.triton.nemo import read

ONE = np.array([[b"Hello"]], np.object_)


def fields(**inputs: Any) -> dict[str, Any]:
    arrays = {name: np.array([[value]]) for name, value in inputs.items()}
    (asked,) = read({"prompts": ONE, **arrays})
    return dict(asked.fields)


@pytest.mark.parametrize(
    ("inputs", "wanted"),
    [
        ({}, {"max_tokens": 256, "temperature": 0.0}),
        ({"max_output_len": 5, "min_output_len": 5}, {"max_tokens": 5, "temperature": 0.0}),
        ({"max_length": 5, "top_k": 1, "top_p": 0.0}, {"max_tokens": 5, "temperature": 0.0}),
        ({"temperature": 0.5}, {"max_tokens": 256, "temperature": 0.5}),
        (
            {"top_k": 3, "top_p": 0.5, "temperature": 0.25, "random_seed": -1},
            {"max_tokens": 256, "temperature": 0.25, "top_k": 3, "top_p": 0.5, "seed": 2**63 - 1},
        ),
        ({"top_p": 0.5, "use_greedy": True}, {"max_tokens": 256, "temperature": 0.0}),
    ],
)
def test_the_likeliest_token_unless_a_choice_is_asked_for(
    inputs: dict[str, Any], wanted: dict[str, Any]
) -> None:
    assert fields(**inputs) == wanted


def test_vllms_sampling_parameters() -> None:
    given = np.array([['{"temperature": 0.5, "top_k": -1, "stop": "x"}']], np.object_)
    (asked,) = read({"text_input": ONE, "sampling_parameters": given})
    assert asked.fields["temperature"] == 0.5
    assert "top_k" not in asked.fields
    assert (asked.stops, asked.nemo, asked.echo) == (("x",), False, False)


def test_stop_words_are_of_their_prompt() -> None:
    prompts = np.array([[b"a"], [b"b"]], np.object_)
    stops = np.array([[b"x", b"y"], [b"z", b""]], np.object_)
    found = read({"prompts": prompts, "stop_words_list": stops})
    assert [asked.stops for asked in found] == [("x", "y"), ("z",)]


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"no_repeat_ngram_size": 3.0}, "no_repeat_ngram_size is not supported"),
        ({"output_generation_logits": True}, "output_generation_logits is not supported"),
        ({"lora_uids": b"a"}, "lora_uids is not supported"),
        ({"max_length": 0}, "must be at least 1"),
        ({"temperature": 3.0}, "temperature=3 must be from 0 to 2"),
        ({"text_input": b"a"}, "either prompts or text_input"),
        ({"sampling_parameters": b"["}, "must be an object in JSON"),
        ({"sampling_parameters": b'{"n": 2}'}, "n is not supported"),
    ],
)
def test_what_would_have_no_effect_is_refused(inputs: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        fields(**inputs)


def test_one_text_a_prompt() -> None:
    with pytest.raises(ValueError, match=r"\[1, 2\]: send one text"):
        read({"prompts": np.array([[b"a", b"b"]], np.object_)})
