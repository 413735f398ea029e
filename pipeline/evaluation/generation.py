"""Greedy answers of an HF model to many questions, and its loss on the expected answers.

One forward pass over question and expected answer gives the loss and, as long as the most likely
token is the expected one, the greedy answer too: the expected answer is the draft of speculative
decoding (arXiv:2211.17192), which with greedy decoding only saves time. An answer that differs is
generated from the first differing token on. This module knows token ids only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import DataError, PipelineError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Question:
    """prompt: token ids up to where the answer begins. expected: ids of the answer and its end."""

    prompt: Sequence[int]
    expected: Sequence[int]


@dataclass(frozen=True)
class Answer:
    """ids: the greedy answer, up to and with a stop token. loss: summed over the expected tokens,
    in nats. tokens: how many these are. likelihood: summed log-probabilities of `ids`."""

    ids: list[int]
    loss: float
    tokens: int
    likelihood: float

    @property
    def confidence(self) -> float:
        """The geometric mean of the probabilities of the answer's tokens."""
        return math.exp(self.likelihood / len(self.ids)) if self.ids else math.nan


def answer(
    model: Any,
    questions: Sequence[Question],
    *,
    stop_ids: Sequence[int],
    max_new_tokens: int,
    batch_size: int,
    advance: Callable[[int], None] = lambda count: None,
) -> list[Answer]:
    """The model's greedy answer to each question, and its loss on the expected one.

    Questions of similar length share a batch. advance: called with the number of finished
    questions.

    Raises:
        DataError: a question is longer than the model's positions.
        PipelineError: the model's outputs are not finite.
    """
    import torch

    positions = model.config.max_position_embeddings
    for number, question in enumerate(questions):
        if (length := len(question.prompt) + len(question.expected)) > positions:
            raise DataError(
                f"test question {number} has {length} tokens and the model {positions} positions: "
                f"lower prepare.max_length to {positions} and run stage=prepare again"
            )
    answers: dict[int, Answer] = {}
    # Question, ids so far, tokens left, log-probability so far.
    unfinished: list[tuple[int, list[int], int, float]] = []
    with torch.inference_mode():
        for batch in _batches([len(q.prompt) + len(q.expected) for q in questions], batch_size):
            chosen = [questions[i] for i in batch]
            for i, question, (greedy, loss, likely) in zip(
                batch, chosen, _follow(model, chosen), strict=True
            ):
                budget = min(max_new_tokens, positions - len(question.prompt))
                ids, ended = _accept(question.expected, greedy, stop_ids, budget)
                likelihood = sum(likely[: len(ids)])
                answers[i] = Answer(ids, loss, len(question.expected), likelihood)
                if not ended:
                    unfinished.append((i, ids, budget - len(ids), likelihood))
            advance(len(batch) - sum(row[0] in batch for row in unfinished))
        lengths = [len(questions[i].prompt) + len(ids) for i, ids, *_ in unfinished]
        for batch in _batches(lengths, batch_size):
            chosen_rows = [unfinished[j] for j in batch]
            prompts = [[*questions[i].prompt, *ids] for i, ids, *_ in chosen_rows]
            budgets = [left for _, _, left, _ in chosen_rows]
            more = _generate(model, prompts, budgets, stop_ids)
            for (i, ids, _, before), (tail, likely) in zip(chosen_rows, more, strict=True):
                known = answers[i]
                answers[i] = Answer([*ids, *tail], known.loss, known.tokens, before + sum(likely))
            advance(len(batch))
    return [answers[i] for i in range(len(questions))]


def text_losses(model: Any, windows: Sequence[Sequence[int]], *, batch_size: int) -> list[float]:
    """The loss of each window of a text, summed over all its tokens but the first, in nats.

    Raises:
        PipelineError: the model's outputs are not finite.
    """
    with_first = [Question(window[:1], window[1:]) for window in windows]
    losses: dict[int, float] = {}
    import torch

    with torch.inference_mode():
        for batch in _batches([len(window) for window in windows], batch_size):
            found = _follow(model, [with_first[i] for i in batch])
            losses |= {i: loss for i, (_, loss, _) in zip(batch, found, strict=True)}
    return [losses[i] for i in range(len(windows))]


def _follow(
    model: Any, questions: Sequence[Question]
) -> Iterator[tuple[list[int], float, list[float]]]:
    """For each question: the likeliest token at each place of the expected answer, the loss, and
    the log-probabilities of these tokens."""
    import torch

    rows = [[*q.prompt, *q.expected] for q in questions]
    width = max(map(len, rows))
    # Padding is on the right, where a causal model's earlier positions cannot see it.
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    hidden = model.base_model(
        input_ids=ids.to(model.device), attention_mask=mask.to(model.device), use_cache=False
    ).last_hidden_state
    for row, question in enumerate(questions):
        start = len(question.prompt) - 1
        wanted = torch.tensor(question.expected)
        states = hidden[row, start : start + len(wanted)]
        logits = model.get_output_embeddings()(states).float().cpu()
        _require_finite(logits)
        loss = torch.nn.functional.cross_entropy(logits, wanted, reduction="sum")
        likely, greedy = logits.log_softmax(-1).max(-1)
        yield greedy.tolist(), float(loss), likely.tolist()


def _accept(
    expected: Sequence[int], greedy: Sequence[int], stop_ids: Sequence[int], budget: int
) -> tuple[list[int], bool]:
    """The known part of the greedy answer, and whether the answer ends there.

    greedy: the most likely token after the prompt and after each expected token but the last.
    """
    known = []
    for wanted, token in zip(expected[:budget], greedy, strict=False):
        known.append(token)
        if token in stop_ids:
            return known, True
        if token != wanted:
            break
    return known, len(known) == budget


def _generate(
    model: Any, prompts: Sequence[Sequence[int]], budgets: Sequence[int], stop_ids: Sequence[int]
) -> list[tuple[list[int], list[float]]]:
    """Greedy continuations, up to and including a stop token, within each row's budget; and the
    log-probability of each token."""
    import torch
    from transformers import GenerationConfig, LogitsProcessorList

    likely: list[torch.Tensor] = []

    def note(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Of each step keep one number a row: all scores of an answer would fill the memory."""
        likely.append(scores.float().log_softmax(-1).max(-1).values.cpu())
        return scores

    width = max(map(len, prompts))
    # Padding is on the left, so that new tokens follow the prompt; positions count without it.
    ids = torch.tensor([[stop_ids[0]] * (width - len(p)) + list(p) for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    output = model.generate(
        ids.to(model.device),
        attention_mask=mask.to(model.device),
        # Our own configuration: the model's may ask for sampling or penalties.
        generation_config=GenerationConfig(
            do_sample=False,
            max_new_tokens=max(budgets),
            eos_token_id=list(stop_ids),
            pad_token_id=stop_ids[0],
        ),
        logits_processor=LogitsProcessorList([note]),
        use_model_defaults=False,
    )
    steps = torch.stack(likely, dim=1).tolist()
    found = []
    for row, step, budget in zip(output, steps, budgets, strict=True):
        ids = _until_stop(row[width:].tolist()[:budget], stop_ids)
        found.append((ids, step[: len(ids)]))
    return found


def _until_stop(ids: list[int], stop_ids: Sequence[int]) -> list[int]:
    end = next((place for place, token in enumerate(ids, start=1) if token in stop_ids), len(ids))
    return ids[:end]


def _batches(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """All indices, similar lengths together; longest first, to run out of memory at once."""
    order = sorted(range(len(lengths)), key=lambda place: -lengths[place])
    for start in range(0, len(order), size):
        yield order[start : start + size]


def _require_finite(logits: torch.Tensor) -> None:
    import torch

    if not torch.isfinite(logits).all():
        raise PipelineError(
            "the model's outputs are not finite: quantize again with more calibration rows "
            "(quantize.calibration.rows), or check the training's loss"
        )
