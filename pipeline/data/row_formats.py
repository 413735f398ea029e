"""One JSON object of a data file as a conversation: each field is used, or the row is refused.

Formats, by the fields that hold the question and the answer:

    messages                              OpenAI, TRL, Axolotl, Unsloth
    conversations                         ShareGPT, NeMo's chat format
    prompt, completion                    OpenAI (legacy), TRL (text, or lists of turns), KTO
    instruction, input, output            Alpaca, LLaMA-Factory (with system and history)
    instruction, context, response        Dolly
    input, output                         NeMo
    question, answer                      question answering
    text                                  plain text, to train on every token of it

Tools, calls and results: tool_rows.py.

A field that a format does not know has no effect on training, so the row is refused by the field's
name. The exceptions are METADATA, the fields that the user lists, and fields without a value.
"""

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from pipeline.config.data import TURN_FIELDS, RowFormat
from pipeline.data.tool_rows import (
    CALLS,
    as_openai,
    check_called,
    link,
    parse_calls,
    parse_tools,
)
from pipeline.models.chat.messages import (
    PLAIN,
    TEMPLATE_FIELDS,
    Message,
    Unusable,
    parse_messages,
    text_of,
)

UNUSED, EXCLUDED = "unused field", "marked as not for training"
PAIRED = "pair of answers"  # where the objective learns from one

# Fields that describe a row or a turn and cannot change what it teaches.
METADATA = frozenset(
    "id _id uid uuid guid idx index row_id request_id conversation_id conv_id prompt_id "
    "question_id sample_id message_id dataset_id __index_level_0__ "
    "source sources source_url url link dataset dataset_name origin file filename path "
    "license author annotator annotator_id user_id created created_at updated_at timestamp time "
    "date version revision hash sha256 "
    "model model_name generator language lang locale domain topic subtopic category categories "
    "subcategory intent task task_name task_type type tags keywords title "
    "comment comments note notes meta metadata extra extra_info "
    "difficulty quality quality_score score rating score_chosen score_rejected chosen_score "
    "rejected_score chosen_rating rejected_rating chosen_reward rejected_reward chosen_model "
    "rejected_model margin num_turns n_turns token_count num_tokens "
    # The row shows itself whether calls are made at once.
    "length word_count parallel_tool_calls".split()
) | {"Unnamed: 0"}  # pandas' name of an index that a CSV file has

# Of a row they say where it is from; of a turn or a part of it, they are what it speaks of.
ATTACHMENTS = frozenset("file filename path url link source_url".split())

# 1 or true: train on it; 0 or false: do not. OpenAI, Mistral: weight; Axolotl: train, training;
# ms-swift: loss; others: trainable.
TRAINING_MARKS = ("weight", "train", "training", "trainable", "loss")
# KTO's mark of a bad answer: TRL's label, LLaMA-Factory's kto_tag. `label` may be a class, too.
ANSWER_MARKS = ("label", "kto_tag")

_PREFERENCE = (
    "an answer to prefer or to avoid, and finetune.objective=sft takes one good answer a row: set "
    "finetune.objective=dpo, orpo or simpo"
)
_MASK = 'trainers disagree on what it means: mark a turn with "weight": 0 or 1 instead'
_MEDIA = "training uses text only"
# Why a well-known field has no effect here.
HINTS = {
    **dict.fromkeys(
        "chosen rejected chosen_response rejected_response preferred_output non_preferred_output "
        "response_j response_k".split(),
        _PREFERENCE,
    ),
    **dict.fromkeys(
        "mask masked mask_ranges train_detail training_detail loss_scale".split(), _MASK
    ),
    **dict.fromkeys("image images video videos audio audios".split(), _MEDIA),
    "label": "a class or a score; only true and false, as in KTO, have an effect",
    "kto_tag": "only true and false have an effect",
    "history": "put the earlier turns into messages",
    "context": "put it into the prompt",
    "refusal": "write it as the content of the turn",
    "ground_truth": "for reinforcement learning; training takes the answer in completion",
}

# Fields of the question, joined by line breaks, and of the answer.
_PAIRS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("instruction", "input", "context"), ("output", "response")),
    (("prompt",), ("completion",)),
    (("input",), ("output",)),
    (("question",), ("answer",)),
)
KNOWN = (
    "messages; conversations; prompt and completion; instruction, input and output; "
    "instruction, context and response; input and output; question and answer; text"
)
_TURNS = ("messages", "conversations")
_ROW_FIELDS = {*_TURNS, "chosen", *(names[0] for names, _ in _PAIRS)}
_NONE: Mapping[str, str] = {}
_COLUMNS = "columns of another name are given as data.columns.prompt=NAME"
SPEAKERS = {"human": "user", "prompter": "user"} | dict.fromkeys(
    ("gpt", "chatgpt", "model", "bot", "chatbot", "ai", "bing", "bard"), "assistant"
)


@dataclass
class ParsedRow:
    """A conversation, and the names of its fields that have a value and were left out.

    rejected: of a pair, the same conversation with the worse answer. label: whether the answer is a
    good one, where the row says so and training learns from it. tools: those that may be called, in
    OpenAI's form. format: the field that decided what the row is. mapped: fields that were read
    from columns of another name.
    """

    messages: list[Message]
    left_out: set[str] = field(default_factory=set)
    rejected: list[Message] | None = None
    label: bool | None = None
    tools: list[dict[str, Any]] = field(default_factory=list)
    format: str = ""
    mapped: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        for side in (self.messages, self.rejected or []):
            check_called(side, self.tools)


def parse_answers(fields: "Fields", *, labelled: bool = False) -> list[Message]:
    """The conversation of a row with good answers. Fields that it does not use are left to refuse.

    labelled: whether a mark of a bad answer is a label to learn from.

    Raises:
        Unusable: it is none, or the row is marked as not for training.
    """
    if labelled:
        fields.check_marks()
    else:
        fields.check_row()
    fields.format, parse = _format_of(fields)
    return parse(fields)


class Fields:
    """The fields of a row or a turn, which keeps account of those that were used.

    Args:
        place: of the turn, with a dot behind it; empty for a row.
        columns: by field, the column that is read in its place.

    Raises:
        Unusable: a field has a value, and a column that is read in its place.
    """

    def __init__(
        self,
        values: Mapping[str, Any],
        ignored: Collection[str],
        place: str = "",
        left_out: set[str] | None = None,
        columns: Mapping[str, str] = _NONE,
        mapped: set[str] | None = None,
    ) -> None:
        self.mapped: set[str] = set() if mapped is None else mapped
        self.columns, self.format = columns, ""
        self.named: RowFormat | None = None  # as data.format names it
        self.left_out: set[str] = set() if left_out is None else left_out
        if columns:
            values = self._renamed(values, columns, ignored, place)
        self.values = {key: value for key, value in values.items() if not is_empty(value)}
        self.ignored, self.place = ignored, place
        self.inner_tools: list[dict[str, Any]] = []  # of an object inside, such as OpenAI's input
        self._given = values
        self._used: set[str] = set()

    def _renamed(
        self,
        values: Mapping[str, Any],
        columns: Mapping[str, str],
        ignored: Collection[str],
        place: str,
    ) -> Mapping[str, Any]:
        fields = {column: field for field, column in columns.items() if column in values}
        for column, field_name in fields.items():
            if field_name in fields or is_empty(values.get(field_name)):
                continue  # it has another name itself, or no value
            if field_name in ignored:
                self.left_out.add(field_name)
                continue
            raise Unusable(
                UNUSED,
                f"{place}{field_name}: data.columns reads it from {shown(column)}; to leave this "
                f"one out, set data.ignore_fields=[{field_name}]",
                field=field_name,
            )
        self.mapped.update(fields.values())
        gone = set(fields.values()) - set(fields)
        return {fields.get(k, k): v for k, v in values.items() if k not in gone}

    def __contains__(self, key: str) -> bool:
        return key in self._given

    def allows(self, name: str) -> bool:
        """Whether data.format allows the format that this field decides."""
        return self.named in (None, name)

    def take(self, key: str, default: Any = None) -> Any:
        """The field's value, even if it is empty; from here on it counts as used."""
        self._used.add(key)
        return self._given.get(key, default)

    def names(self) -> str:
        """The fields with a value, for messages."""
        names = ", ".join(map(shown, self.values)) or "none"
        return names if len(names) <= 120 else names[:119] + "…"

    def refuse_unused(self) -> None:
        for key in self.values:
            if key in self._used:
                continue
            attached = bool(self.place) and key in ATTACHMENTS
            if key in self.ignored or (key in METADATA and not attached):
                self.left_out.add(key)
                continue
            raise self.unused(key, _MEDIA if attached else None)

    def unused(self, key: str, why: str | None = None) -> Unusable:
        why = why or HINTS.get(key, "no effect on training")
        name = shown(key)
        return Unusable(
            UNUSED,
            f"{self.place}{name}: {why}; to leave the field out, set data.ignore_fields=[{name}]",
            field=name,
        )

    def trains(self) -> bool:
        """Whether the marks say to train on it."""
        verdict = True
        for key in TRAINING_MARKS:
            if key not in self.values:
                continue
            if self.values[key] not in (0, 1):
                if key in self.ignored:
                    continue
                value = shown(repr(self.values[key]))
                raise self.unused(key, f"it is {value}; allowed: 0 and 1, or false and true")
            self._used.add(key)
            verdict = verdict and bool(self.values[key])
        return verdict

    def check_row(self) -> None:
        """Refuse a row that says not to train on it, or that is for another kind of training."""
        for key, is_good in self.answer_marks().items():
            if not is_good:
                raise Unusable(
                    EXCLUDED, f"{key} is false: the answer is an example of a bad one", key
                )
        self.check_marks()
        for key in self.values:
            if HINTS.get(key) == _PREFERENCE and key not in self.ignored:
                raise Unusable(PAIRED, self.unused(key).detail, key)

    def answer_marks(self) -> dict[str, bool]:
        """The fields that say whether the row's answer is a good one, which then count as used."""
        return {k: self.take(k) for k in ANSWER_MARKS if isinstance(self.values.get(k), bool)}

    def tools(self) -> list[dict[str, Any]]:
        """The tools that may be called.

        Raises:
            Unusable: they are malformed.
        """
        return parse_tools(self) or self.inner_tools

    def nested(self, values: Mapping[str, Any], place: str) -> "Fields":
        """The fields of an object inside this one."""
        return Fields(values, self.ignored, place, self.left_out)

    def check_marks(self) -> None:
        """Refuse a row that says not to train on it."""
        if not self.trains():
            key = next(k for k in TRAINING_MARKS if k in self.values and not self.values[k])
            raise Unusable(EXCLUDED, f"{key} of the row is {self.values[key]!r}", key)


def is_empty(value: object) -> bool:
    return value is None or (isinstance(value, str | list | dict) and not value)


def shown(name: str) -> str:
    """A field's name for messages: short, and safe to print."""
    name = name if name.isprintable() else ascii(name)[1:-1]
    return name if len(name) <= 40 else name[:39] + "…"


def _format_of(fields: Fields) -> tuple[str, Callable[[Fields], list[Message]]]:
    """The field that decides the row's format, and how it is read."""
    for name in _TURNS:
        if name in fields and fields.allows(name):
            return name, partial(_taken, name=name)
    for questions, answers in _PAIRS:
        name, first = questions[0], questions[0] in fields
        if not fields.allows(name):
            continue
        if first and (len(questions) > 1 or answers[0] in fields or len(fields.values) == 1):
            return name, partial(_pair, questions=questions, answers=answers)
        if not first and name != "question" and len(questions) == 1 and answers[0] in fields:
            return name, partial(_pair, questions=questions, answers=answers)
    if "text" in fields and fields.allows("text"):
        return "text", _plain
    if fields.named:
        raise Unusable(
            "unknown format", f"data.format={fields.named}, and the row has {fields.names()}"
        )
    raise Unusable("unknown format", f"fields {fields.names()}; {_advice(fields.values)}")


def _advice(values: Mapping[str, Any]) -> str:
    """What to do with a row of no known format: some hold a row, rows or turns in a field."""
    for name, value in values.items():
        inner = value[0] if isinstance(value, list) else value
        if not isinstance(inner, dict) or not name.isidentifier():
            continue
        if isinstance(value, list) and {"role", "from"} & set(inner):
            return f"the turns are read from {name} with data.columns.messages={name}"
        if _ROW_FIELDS & set(inner):
            path = f".{name}[]" if isinstance(value, list) else f".{name}"
            return f"rows are inside of {name}: `jq -c '{path}' FILE > NEW.jsonl` takes them out"
    return f"known: {KNOWN}; {_COLUMNS}"


def _taken(row: Fields, name: str) -> list[Message]:
    return conversation(row, row.take(name))


def _plain(row: Fields) -> list[Message]:
    """A text that is not a conversation, as the only turn, of the role PLAIN."""
    text = text_of(row.take("text"), "text")
    if text is None or not text.strip():
        raise Unusable("empty text", "text has no text")
    return [{"role": PLAIN, "content": text}]


def conversation(row: Fields, turns: object) -> list[Message]:
    """Turns of OpenAI's form or ShareGPT's. A `system` beside them is the first turn."""
    if isinstance(turns, str) and turns.lstrip().startswith("["):
        turns = _decoded(turns)  # a cell of a table holds them as JSON
    if isinstance(turns, dict):
        turns = _from_columns(turns)
    if not isinstance(turns, list):
        return parse_messages(turns, answered=True)  # which refuses it
    parsed, extras = [], []
    for i, turn in enumerate(turns):
        told, extra = _turn(turn, f"messages[{i}]", row)
        parsed.append(told)
        extras.append(extra)
    if "system" in row.values:
        _check_first(parsed, row)
        parsed.insert(0, {"role": "system", "content": row.take("system")})
        extras.insert(0, {})
    _check_mask(row)
    _take_repeated(parsed, row)
    link(parsed)
    _make_context_of_greeting(parsed)
    messages = parse_messages(parsed, answered=True)
    return [{**m, **e} if e else m for m, e in zip(messages, extras, strict=True)]


def _take_repeated(turns: list[Any], row: Fields) -> None:
    """Data sets such as UltraChat repeat the first question as `prompt`: then it says nothing."""
    asked = next((t for t in turns if isinstance(t, dict) and t.get("role") == "user"), {})
    if isinstance(prompt := row.values.get("prompt"), str) and prompt == asked.get("content"):
        row.take("prompt")


def _make_context_of_greeting(turns: list[Any]) -> None:
    """Mark what the assistant says before anybody asks as context, in place, unless the row itself
    says to train on it: a server is never asked for it."""
    for turn in turns:
        if not isinstance(turn, dict) or turn.get("role") == "user":
            return
        if turn.get("role") == "assistant":
            turn.setdefault("weight", 0)


def _decoded(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        why = f"the turns are a text that is no JSON ({error})"
        if text.lstrip()[1:].lstrip().startswith(("{'", '{"')) and "'" in text:
            why += ", but Python's notation: write the column with json.dumps, or as Parquet"
        raise Unusable("bad JSON", why) from error


def _from_columns(turns: dict[str, Any]) -> object:
    """Turns that are given as a list for each of their fields, as `datasets` saves a Sequence."""
    lists = [value for value in turns.values() if isinstance(value, list)]
    if not lists or len(lists) < len(turns) or len({len(value) for value in lists}) > 1:
        return turns
    return [dict(zip(turns, values, strict=True)) for values in zip(*lists, strict=True)]


def _check_first(turns: list[Any], row: Fields) -> None:
    first = turns[0] if turns else None
    if isinstance(first, dict) and first.get("role") in ("system", "developer"):
        raise row.unused("system", "the conversation has a system turn of its own")


def _check_mask(row: Fields) -> None:
    """NeMo's `mask` names the speaker that is not trained on: that can only be the user."""
    if str(row.values.get("mask")).casefold() in ("user", "human"):
        row.take("mask")


def _turn(turn: object, place: str, row: Fields) -> tuple[Any, dict[str, Any]]:
    """A turn in OpenAI's form, and those of its fields that only a template can give an effect."""
    if not isinstance(turn, dict):
        return turn, {}
    columns = {k: c for k, c in row.columns.items() if k in TURN_FIELDS}
    fields = Fields(turn, row.ignored, f"{place}.", row.left_out, columns, row.mapped)
    if "from" in fields and "role" not in fields:
        role, content = fields.take("from"), fields.take("value")
        role = SPEAKERS.get(role.lower(), role.lower()) if isinstance(role, str) else role
    else:
        role, content = fields.take("role"), fields.take("content")
        role = SPEAKERS.get(role, role) if isinstance(role, str) else role
    _check_parts(content, place, row)
    role, content, calls = as_openai(role, content, place)
    if role == "assistant":
        calls = [*calls, *parse_calls(fields, place)]
    told: dict[str, Any] = {"role": role, "content": content}
    if calls:
        told["tool_calls"] = calls
    if role == "tool":
        told |= {k: fields.take(k) for k in ("tool_call_id", "name") if k in fields.values}
    trains = fields.trains()
    if not trains:
        told["weight"] = 0
    elif role != "assistant" and (mark := _first_mark(fields)):
        raise fields.unused(
            mark, f"only the assistant's turns are trained on, and this is {role}'s"
        )
    elif _first_mark(fields):
        told["weight"] = 1
    known = [k for k in TEMPLATE_FIELDS if k in fields.values and k not in told]
    extra = {k: fields.take(k) for k in known if k not in row.ignored}
    row.left_out |= {k for k in (*known, *CALLS) if k in fields.values and k in row.ignored}
    fields.refuse_unused()
    return told, extra


def _check_parts(content: object, place: str, row: Fields) -> None:
    """Refuse fields of text parts, such as Axolotl's marks; parts that are no text fail later."""
    for j, part in enumerate(content if isinstance(content, list) else ()):
        if isinstance(part, dict) and part.get("type") == "text":
            fields = Fields(part, row.ignored, f"{place}.content[{j}].", row.left_out)
            fields.take("type")
            fields.take("text")
            fields.refuse_unused()


def _first_mark(fields: Fields) -> str | None:
    return next((key for key in TRAINING_MARKS if fields.values.get(key)), None)


def _pair(row: Fields, questions: tuple[str, ...], answers: tuple[str, ...]) -> list[Message]:
    """A question and its answer, with a `system` and LLaMA-Factory's `history` before them."""
    given = [key for key in answers if key in row.values]
    answer_key = given[0] if given else answers[0]
    if isinstance(row.values.get(questions[0]), list):
        return _lists(row, questions[0], answer_key)
    turns = question_turns(row, questions)
    if "system" in row.values:
        turns.insert(0, said("system", trim(row.take("system"))))
    answer = row.take(answer_key)
    if is_empty(answer):
        raise Unusable("empty assistant turn", f"{answer_key} has no text, or is missing")
    if answer_key == "completion" and isinstance(answer, str) and answer[1:2] != " ":
        answer = answer.removeprefix(" ")  # the separator that OpenAI's legacy format asks for
    return parse_messages([*turns, said("assistant", trim(answer))], answered=True)


def question_turns(row: Fields, questions: tuple[str, ...]) -> list[dict[str, Any]]:
    """The turns of `history` and of the question, without `system`."""
    parts = [trim(row.take(key)) for key in questions if key in row.values]
    texts = [part for part in parts if isinstance(part, str)]
    # What is no text is left for parse_messages to refuse.
    question = next((p for p in parts if not isinstance(p, str)), "\n".join(texts))
    return [*_history(row), said("user", question)]


def _lists(row: Fields, question: str, answer: str) -> list[Message]:
    """TRL's conversational form: a list of turns each, of which the answer's are trained on."""
    asked, answered = row.take(question), row.take(answer)
    if isinstance(answered, str):
        answered = [said("assistant", answered)]
    if not isinstance(answered, list):
        raise Unusable("bad message", f"{question} is a list of turns, and {answer} is not")
    context = [
        {**turn, "weight": 0}
        if isinstance(turn, dict) and turn.get("role") == "assistant"
        else turn
        for turn in asked
    ]
    return conversation(row, context + answered)


def _history(row: Fields) -> list[dict[str, Any]]:
    """Earlier questions and answers; LLaMA-Factory trains on these answers too."""
    if "history" not in row.values:
        return []
    history, turns = row.take("history"), []
    for i, pair in enumerate(history if isinstance(history, list) else [history]):
        if not isinstance(pair, list) or len(pair) != 2:
            raise row.unused("history", f"history[{i}] is not a pair of question and answer")
        if any(not is_empty(text) for text in pair):
            turns += [said("user", trim(pair[0])), said("assistant", trim(pair[1]))]
    return turns


def said(role: str, content: object) -> dict[str, Any]:
    return {"role": role, "content": content}


def trim(value: object) -> object:
    """The text without blank lines around it and white space behind it, which separate in these
    formats. The indentation of its first line stays.
    """
    if not isinstance(value, str):
        return value
    text = value.rstrip()
    blank = len(text) - len(text.lstrip())
    return text[text.rfind("\n", 0, blank) + 1 :]
