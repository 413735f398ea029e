"""One JSON object of a data file as what an objective learns from.

    answers   one good answer (row_formats.py)
    pairs     a better and a worse answer to the same prompt
    labels    one answer, and whether it is a good one

Pairs, by the fields that hold the better and the worse answer:

    chosen, rejected                         TRL, Axolotl, LLaMA-Factory, UltraFeedback, HH-RLHF
    chosen_response, rejected_response       NeMo-Aligner; with `messages`, ms-swift
    preferred_output, non_preferred_output   OpenAI, with `input` of `messages`
    response_j, response_k                   StackExchange, with `question`
    completions                              NeMo-RL, with `context`: the lower rank is the better

A side is a text, a turn, or a list of turns. If it has the whole conversation, its prompt is what
both sides begin with; otherwise the prompt is in fields of its own, as in a row with one answer.
Labels are in `label` or `kto_tag`, beside the fields of any row with one answer.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from pipeline.config.data import RowFormat
from pipeline.config.finetune import LABEL_FIELDS, PAIR_FIELDS, RowKind, objectives_of
from pipeline.data.row_formats import (
    SPEAKERS,
    Fields,
    ParsedRow,
    conversation,
    parse_answers,
    question_turns,
    said,
    trim,
)
from pipeline.models.chat.messages import PLAIN, Message, Unusable

SIDES = (
    ("chosen", "rejected"),
    ("chosen_response", "rejected_response"),
    ("preferred_output", "non_preferred_output"),
    ("response_j", "response_k"),
)
NO_PAIR, EQUAL, PROMPTS = "no pair of answers", "equal answers", "sides differ in the prompt"
_NONE: Mapping[str, str] = {}
NO_LABEL, EMPTY_SIDE = "no label", "empty side"
_QUESTIONS = (("instruction", "input", "context"), ("prompt",), ("input",), ("question",))
# Anthropic's HH-RLHF: "\n\nHuman: …\n\nAssistant: …"
_SPEAKER = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")


def parse_example(
    row: object,
    ignored: Collection[str] = (),
    kind: RowKind = "answers",
    *,
    is_test: bool = False,
    columns: Mapping[str, str] = _NONE,
    named: RowFormat | None = None,
) -> ParsedRow:
    """What one JSON object teaches.

    Args:
        row: decoded JSON.
        ignored: fields to leave out, of the row and of its turns.
        kind: what the objective learns from.
        is_test: whether it is a question with its expected answer. The better answer of a pair is
            that, and rows with one good answer are allowed beside pairs and labels.
        columns: by field, the column that is read in its place.
        named: the field that decides the format of a row with one answer; None: its fields do.

    Raises:
        Unusable: why it is not of this kind; `field` is the field that has no effect, if that is
            the reason.
    """
    if not isinstance(row, dict):
        raise Unusable(
            "bad JSON", "each line must be one object (`jq -c '.[]'` turns an array into lines)"
        )
    fields = Fields(row, ignored, columns=columns)
    fields.named = named
    if kind == "answers":
        parsed = ParsedRow(parse_answers(fields), fields.left_out)
    elif kind == "labels" and not is_test:
        parsed = _labelled(fields)
    elif sides := _sides(fields):
        parsed = _pair(fields, *sides)
        parsed.rejected = None if is_test else parsed.rejected
    elif is_test:
        parsed = ParsedRow(parse_answers(fields), fields.left_out)
    else:
        raise Unusable(
            NO_PAIR,
            f"finetune.objective={objectives_of('pairs')} learns from {PAIR_FIELDS}; this row has "
            f"{fields.names()}: set finetune.objective={objectives_of('answers')} to train on "
            "one answer a row",
        )
    parsed = replace(parsed, tools=fields.tools(), format=fields.format,
                     mapped=frozenset(fields.mapped))  # fmt: skip
    fields.refuse_unused()
    if parsed.messages[0]["role"] == PLAIN and (is_test or kind != "answers"):
        raise Unusable(
            "no assistant turn",
            "text is not a question with its answer: use it in data.train, with "
            "finetune.objective=sft",
            "text",
        )
    return parsed


def _labelled(fields: Fields) -> ParsedRow:
    """A row with one answer and its mark. Earlier answers are context."""
    if _sides(fields):
        raise Unusable(
            NO_LABEL,
            f"finetune.objective=kto learns from {LABEL_FIELDS}: write a row for each answer, or "
            f"set finetune.objective={objectives_of('pairs')}",
        )
    marks = fields.answer_marks()
    if not marks:
        raise Unusable(
            NO_LABEL,
            f"finetune.objective=kto learns from {LABEL_FIELDS}; label must be true or false, and "
            f"this row has {fields.names()}",
        )
    if len(set(marks.values())) > 1:
        raise Unusable(NO_LABEL, f"{' and '.join(marks)} contradict each other")
    *before, answer = parse_answers(fields, labelled=True)
    return ParsedRow(
        [*_as_context(before), answer], fields.left_out, label=next(iter(marks.values()))
    )


def _sides(fields: Fields) -> tuple[str, str] | None:
    """The names of the fields with the better and the worse answer."""
    if "completions" in fields.values and "completions" not in fields.ignored:
        return "completions", "completions"
    for names in SIDES:
        if any(name in fields.values and name not in fields.ignored for name in names):
            return names
    return None


def _pair(fields: Fields, better: str, worse: str) -> ParsedRow:
    fields.format = better
    fields.answer_marks()
    fields.check_marks()
    prompt: list[Any] | None
    if better == "completions":
        good, bad = _ranked(fields)
        prompt = _turns_before(fields, "context")
    else:
        for name in (better, worse):
            # ms-swift: the better answer is the last turn of messages.
            if name not in fields.values and not (name == better and _ends_answered(fields)):
                raise Unusable(EMPTY_SIDE, f"{name} has no text, or is missing", name)
        good, bad = fields.take(better), fields.take(worse)
        prompt = _prompt(fields, good)
        if better not in fields.values:
            assert prompt
            *prompt, good = prompt
    good = _whole(fields, prompt, good, better)
    return _split(fields, good, _whole(fields, prompt, bad, worse), prompt)


def _ends_answered(fields: Fields) -> bool:
    turns = fields.values.get("messages") or fields.values.get("conversations")
    return isinstance(turns, list) and len(turns) > 1 and _role(turns[-1]) == "assistant"


def _ranked(fields: Fields) -> tuple[Any, Any]:
    """NeMo-RL's two completions, the one of lower rank first."""
    given = fields.take("completions")
    found = given if isinstance(given, list) else []
    if len(found) != 2 or not all(
        isinstance(one, dict) and set(one) == {"rank", "completion"} and type(one["rank"]) is int
        for one in found
    ):
        raise Unusable(NO_PAIR, "completions must be two objects with rank and completion")
    first, second = sorted(found, key=lambda one: one["rank"])
    if first["rank"] == second["rank"]:
        raise Unusable(NO_PAIR, "both completions have the same rank")
    return first["completion"], second["completion"]


def _prompt(fields: Fields, good: object) -> list[Any] | None:
    """The turns before the answer that are in fields of their own; None if there are none.

    good: the better side. UltraFeedback repeats it as `messages`.
    """
    if isinstance(inner := fields.values.get("input"), dict):
        inside = Fields(inner, fields.ignored, "input.", fields.left_out)
        inside.check_marks()
        turns = inside.take("messages")
        fields.inner_tools = inside.tools()
        inside.refuse_unused()
        fields.take("input")
        return _listed(turns, "input.messages")
    for name in ("messages", "conversations"):
        if name in fields.values and _turns_before(fields, name) != good:
            return _turns_before(fields, name)
    for names in _QUESTIONS:
        if names[0] not in fields.values:
            continue
        if isinstance(fields.values[names[0]], list):
            return _turns_before(fields, names[0])
        return question_turns(fields, names)
    return None


def _turns_before(fields: Fields, name: str) -> list[Any]:
    return _listed(fields.take(name), name)


def _listed(turns: object, name: str) -> list[Any]:
    if not isinstance(turns, list) or not turns:
        raise Unusable("bad message", f"{name} must be a list of at least one turn")
    return turns


def _whole(fields: Fields, prompt: list[Any] | None, side: object, name: str) -> list[Message]:
    """The conversation that ends with a side."""
    turns = _turns_of(side)
    if not turns:
        raise Unusable(EMPTY_SIDE, f"{name} has no turn", name)
    is_whole = prompt is None and any(_role(turn) == "user" for turn in turns)
    if _role(turns[0]) == "assistant" and not is_whole:  # a whole one may begin with a greeting
        if prompt is None:
            raise Unusable(
                NO_PAIR,
                f"{name} is an answer, and the row has no prompt: add a field prompt, or write "
                f"{name} as the list of all turns",
            )
        turns = [*prompt, *turns]
    try:
        return conversation(fields, turns)
    except Unusable as error:
        raise Unusable(error.reason, f"in {name}: {error.detail}", error.field) from error


def _turns_of(side: object) -> list[Any]:
    """A side as a list of turns."""
    if isinstance(side, list):
        return side
    if isinstance(side, dict):
        return [side]
    if isinstance(side, str) and side.lstrip().startswith("Human:"):
        _, *pieces = _SPEAKER.split(side)
        roles = {"Human": "user", "Assistant": "assistant"}
        return [
            said(roles[who], text.strip())
            for who, text in zip(pieces[::2], pieces[1::2], strict=True)
        ]
    return [said("assistant", trim(side))]


def _role(turn: object) -> object:
    """The role of a turn; an answer without a role is the assistant's."""
    if not isinstance(turn, dict):
        return None
    role = turn.get("role", turn.get("from"))
    return SPEAKERS.get(role, role) if isinstance(role, str) else role


def _split(
    fields: Fields, good: list[Message], bad: list[Message], prompt: list[Any] | None
) -> ParsedRow:
    """The pair, in which only what follows the shared beginning is trained on."""
    if good == bad:
        raise Unusable(EQUAL, "both sides say the same, so there is nothing to prefer")
    shared = next(
        (i for i, (a, b) in enumerate(zip(good, bad, strict=False)) if a != b),
        min(len(good), len(bad)),
    )
    # One side may go on where the other ends: the answer before that is part of both.
    shared = shared if shared < min(len(good), len(bad)) else shared - 1
    if good[shared]["role"] != "assistant" or bad[shared]["role"] != "assistant":
        raise Unusable(
            PROMPTS,
            f"turn {shared + 1} is {good[shared]['role']}'s and differs: both sides must answer "
            "the same prompt",
        )
    before = good[:shared]
    if prompt is not None and not _holds(before, prompt):
        raise Unusable(
            PROMPTS, "the sides have turns of their own, and these do not begin with the prompt"
        )
    context = _as_context(before)
    return ParsedRow(context + good[shared:], fields.left_out, rejected=context + bad[shared:])


def _holds(before: list[Message], prompt: list[Any]) -> bool:
    """Whether the turns of the prompt are among the shared ones, with the same text."""
    told = [turn.get("content", turn.get("value")) for turn in prompt if isinstance(turn, dict)]
    texts = [message["content"].strip() for message in before]
    wanted = [text.strip() for text in told if isinstance(text, str)]
    return wanted == texts[len(texts) - len(wanted) :]


def _as_context(messages: list[Message]) -> list[Message]:
    """The turns, of which none is trained on."""
    return [{**m, "weight": 0} if m["role"] == "assistant" else m for m in messages]
