from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.core.errors import DataError, PipelineError
from pipeline.evaluation.generation import Question, _accept, answer
from pipeline.models import hf_model

STOP = 1


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=24,
        max_position_embeddings=64,
        initializer_range=0.5,
    )
    folder = tmp_path_factory.mktemp("model")
    made = LlamaForCausalLM(config)
    # What a model's own file asks for must not count.
    made.generation_config.repetition_penalty = 5.0
    made.generation_config.no_repeat_ngram_size = 1
    made.save_pretrained(folder)
    return hf_model.load_model(folder, dtype="float32")


def prompts() -> list[list[int]]:
    random = torch.Generator().manual_seed(1)
    lengths = (3, 9, 5, 5, 12, 1, 7)
    return [torch.randint(2, 24, (n,), generator=random).tolist() for n in lengths]


def one_by_one(model: Any, prompt: list[int], count: int) -> list[int]:
    """Greedy decoding in its plainest form: a full pass for each token."""
    ids: list[int] = []
    while len(ids) < count and STOP not in ids:
        ids.append(int(hf_model.logits(model, prompt + ids)[-1].argmax()))
    return ids


@pytest.mark.parametrize("batch_size", [1, 3, 7])
@pytest.mark.parametrize("draft", ["itself", "its beginning", "another", "longer"])
def test_answers_are_greedy_whatever_is_expected_and_however_batched(
    model: Path, batch_size: int, draft: str
) -> None:
    greedy = [one_by_one(model, prompt, 10) for prompt in prompts()]
    assert {len(ids) for ids in greedy} != {10}  # some end by themselves, some do not
    expected = {
        "itself": greedy,
        "its beginning": [ids[:3] for ids in greedy],
        "another": [[2, 3, STOP]] * len(greedy),
        "longer": [[*ids, 4, 5, 6] for ids in greedy],
    }[draft]
    questions = [Question(p, e) for p, e in zip(prompts(), expected, strict=True)]
    done: list[int] = []
    answers = answer(
        model,
        questions,
        stop_ids=[STOP],
        max_new_tokens=10,
        batch_size=batch_size,
        advance=done.append,
    )
    assert [a.ids for a in answers] == greedy
    assert sum(done) == len(questions)


def test_loss_is_that_of_the_expected_tokens(model: Path) -> None:
    question = Question([5, 6, 7], [8, 9, STOP])
    (result,) = answer(model, [question], stop_ids=[STOP], max_new_tokens=2, batch_size=1)
    chances = hf_model.logits(model, [5, 6, 7, 8, 9, STOP]).log_softmax(-1)
    by_hand = -(chances[2, 8] + chances[3, 9] + chances[4, STOP])
    assert result.loss == pytest.approx(float(by_hand), rel=1e-5)
    assert (result.tokens, len(result.ids)) == (3, 2)


def test_an_answer_ends_where_the_positions_do(model: Path) -> None:
    prompt = [5] * 60
    (result,) = answer(
        model, [Question(prompt, [6, 7])], stop_ids=[99], max_new_tokens=50, batch_size=1
    )
    assert len(result.ids) == 4
    with pytest.raises(DataError, match=r"prepare\.max_length to 64"):
        answer(model, [Question(prompt, [6] * 5)], stop_ids=[1], max_new_tokens=5, batch_size=1)


def test_outputs_that_are_not_finite_are_refused(model: Any) -> None:
    weight = model.lm_head.weight.data
    before = weight[3, 0].item()
    weight[3, 0] = float("nan")
    try:
        with pytest.raises(PipelineError, match="not finite"):
            answer(model, [Question([5], [6])], stop_ids=[1], max_new_tokens=2, batch_size=1)
    finally:
        weight[3, 0] = before


@pytest.mark.parametrize(
    ("expected", "greedy", "known", "ended"),
    [
        ([4, 5, 1], [4, 5, 1], [4, 5, 1], True),  # all as expected
        ([4, 5, 1], [4, 6, 1], [4, 6], False),  # the last is of another beginning
        ([4, 5, 1], [1, 6, 1], [1], True),  # it would have stopped at once
        ([4, 5, 6], [4, 5, 6], [4, 5, 6], False),  # goes on behind the draft
        ([4, 5, 6, 7, 8], [4, 5, 6, 7, 8], [4, 5, 6, 7], True),  # as long as it may be
    ],
)
def test_a_draft_is_accepted_up_to_the_first_difference(
    expected: list[int], greedy: list[int], known: list[int], ended: bool
) -> None:
    assert _accept(expected, greedy, [1], 4) == (known, ended)
