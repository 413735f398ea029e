"""Sampling and tokens as KServe's tensors, and back."""

import pytest

from pipeline.engines.base import Client, Guide, Sampling, Token
from pipeline.engines.kserve import contract
from pipeline.engines.kserve.messages import message
from pipeline.engines.kserve.tensors import Tensor, values_of
from pipeline.engines.kserve.transport import failure

FULL = Sampling(
    7,
    temperature=0.5,
    top_p=0.9,
    top_k=5,
    seed=2**62,
    stop_ids=frozenset({2, 1}),
    frequency_penalty=0.5,
    min_p=0.1,
    logit_bias={3: -1.5},
    min_tokens=2,
    allowed_ids=frozenset({4, 5}),
    bad_words=((1, 2), (3,)),
    logprobs=0,
    prompt_logprobs=2,
    cache_salt="a",
    guide=Guide("regex", "[0-9]+"),
    adapter="x",
    client=Client("n", "c", 2.0, 1),
)


@pytest.mark.parametrize("sampling", [Sampling(1), FULL])
def test_sampling_comes_back_whole(sampling: Sampling) -> None:
    text = contract.write_sampling(sampling, prompt=[5], details=True)
    assert contract.read_sampling(text) == (sampling, {"prompt": [5], "details": True})


@pytest.mark.parametrize("text", ["{", "[]", '{"max_tokens": 1, "x": 2}', "{}", '{"guide": 1}'])
def test_what_is_no_sampling_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        contract.read_sampling(text)


def test_tokens_come_back_with_their_probabilities() -> None:
    tokens = [Token(1, -0.5, ((1, -0.5), (2, -1.0)), 1), Token(3)]
    text = contract.write_details(tokens, [Token(9)]).encode()
    assert contract.read_details(text) == (tokens, [Token(9)])


def test_words_are_written_as_tensorrt_llm_reads_them() -> None:
    made = contract.word_list("bad_words_list", [(1, 2), (3,)])
    assert (made.shape, list(made.values)) == ((1, 2, 3), [1, 2, 3, 2, 3, -1])
    assert contract.read_word_list(made.values) == ((1, 2), (3,))
    with pytest.raises(ValueError, match="ends are not in order"):
        contract.read_word_list([1, 2, 9, -1])


def asked(sampling: Sampling) -> dict[str, list[object]]:
    known = {*contract.SCALARS, "input_ids", "input_lengths", "end_id", "stop_words_list"}
    found = contract.request_tensors([7, 8], sampling, frozenset({*known, "bad_words_list"}))
    return {tensor.name: list(tensor.values) for tensor in found}


def test_a_plain_backend_gets_its_own_inputs() -> None:
    stops = frozenset({4, 2})
    assert asked(Sampling(3, temperature=0, stop_ids=stops)) == {
        "input_ids": [7, 8],
        "input_lengths": [2],
        "end_id": [2],
        "stop_words_list": [4, 1],
        "request_output_len": [3],
        "temperature": [1.0],
        "runtime_top_k": [1],
        "runtime_top_p": [0.0],
    }
    found = asked(Sampling(3, temperature=0.5, top_k=4, seed=1, repetition_penalty=1.2))
    assert (found["temperature"], found["runtime_top_k"], found["seed"]) == ([0.5], [4], [1])
    assert found["repetition_penalty"] == [1.2]


def test_what_it_has_no_input_for_is_refused() -> None:
    with pytest.raises(ValueError, match="guide: the server behind"):
        asked(Sampling(1, guide=Guide("regex", "a")))
    with pytest.raises(ValueError, match="seed: the server behind this one has no such input"):
        contract.request_tensors(
            [1],
            Sampling(1, seed=1),
            frozenset({"input_ids", "input_lengths", "request_output_len"}),
        )


@pytest.mark.parametrize(
    ("datatype", "values"),
    [("INT32", [1, -2]), ("FP32", [0.5]), ("BOOL", [True]), ("BYTES", [b"a", b"", b"\xc3\xa4"])],
)
def test_tensors_come_back(datatype: str, values: list[object]) -> None:
    raw = Tensor("x", datatype, (1, len(values)), values).raw()
    assert values_of(datatype, raw) == values


@pytest.mark.parametrize("raw", [b"\x01", b"\x05\x00\x00\x00ab"])
def test_a_tensor_that_ends_early_is_refused(raw: bytes) -> None:
    with pytest.raises(ValueError, match="ends early"):
        values_of("BYTES", raw)


def test_messages_have_the_protocols_form() -> None:
    request = message("ModelInferRequest")(model_name="m")
    request.parameters["a"].bool_param = True
    request.inputs.add(name="x", datatype="INT32", shape=[1, 2])
    again = message("ModelInferRequest").FromString(request.SerializeToString())
    assert again.parameters["a"].bool_param
    assert list(again.inputs[0].shape) == [1, 2]


def test_errors_are_the_clients_or_the_servers() -> None:
    kinds = {"INVALID_ARG: wrong": "ValueError", "UNAVAILABLE: the queue is full": "QueueFull"}
    kinds["anything"] = "EngineFailed"
    assert {text: type(failure(text)).__name__ for text in kinds} == kinds
    assert isinstance(failure("no such model", "NOT_FOUND"), ValueError)
