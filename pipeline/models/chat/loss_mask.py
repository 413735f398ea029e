"""Which tokens of a rendered conversation the assistant has to produce, with any chat template.

Where the template has generation blocks, they say it. Else each answer is found by rendering the
conversation again, with marks around the answers, or only as far as a turn that calls tools.
"""

import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any

from pipeline.models.chat.messages import TEMPLATE_FIELDS, Message, Unusable
from pipeline.models.chat.template import ChatTemplate
from pipeline.models.chat.tool_calls import names_of

# The end of a prompt within which the model thinks, and of one that has it answer without that.
OPEN_THOUGHT = re.compile(r"<think>\s*\Z")
_PROMPTED_THOUGHT = re.compile(r"<think>\s*(</think>\s*)?\Z")
EMPTY_THOUGHT = re.compile(r"\A<think>\s*</think>\s*")
Tools = Sequence[Mapping[str, Any]] | None
Span = tuple[int, int]  # the first character, and the one behind the last


@dataclass(frozen=True)
class Conversation:
    """A conversation and its text.

    expand: conversation and tools as text, as training sees them. control, control_ids: the
    tokenizer's control tokens. folder: the model's, for messages.
    """

    template: ChatTemplate
    expand: Callable[[Sequence[Message], Tools], str]
    control: re.Pattern[str]
    control_ids: set[int]
    folder: Path
    messages: Sequence[Message]
    tools: Tools
    text: str

    def loss_mask(self, ids: Sequence[int], offsets: Sequence[Span]) -> list[int]:
        """1 for each token to train on, else 0.

        offsets: the characters of each token.

        Raises:
            Unusable: the template alters a turn, does not end it, or leaves out a field.
        """
        self._check_fields()
        turns = [i for i, message in enumerate(self.messages) if message["role"] == "assistant"]
        if blocks := self._blocks(turns):
            return self._mask_of_blocks(blocks, ids, offsets)
        control = [position for position, i in enumerate(ids) if i in self.control_ids]
        ends = [end for _, end in offsets]  # in rising order
        mask = [0] * len(ids)
        position = 0
        for start, end, trained in self._spans(turns, [offsets[at] for at in control]):
            position = max(position, bisect_left(ends, start))
            while position < len(ids) and not self._starts(ids[position], offsets[position], start):
                position += 1
            last = next((at for at in control if at >= position and ends[at] > end), None)
            if last is None:
                raise self._endless()
            mask[position : last + 1] = [trained] * (last + 1 - position)
            position = last + 1
        return mask

    def _starts(self, token: int, offset: Span, start: int) -> bool:
        """Whether a token is the first of a turn whose characters begin at `start`."""
        begin, end = offset
        return begin >= start or (end > start and token not in self.control_ids)

    def _prompt(self, turn: int) -> str:
        """What is served before a turn."""
        before = self.messages[:turn]
        return self.template.expand(before, generation_prompt=True, tools=self.tools)

    def _is_last(self, turn: int) -> bool:
        return turn == len(self.messages) - 1

    def _blocks(self, turns: Sequence[int]) -> dict[int, list[Span]]:
        """The template's own generation blocks, by the number of the turn that has them.

        Empty unless each of the assistant's turns has one, as far as can be told.
        """
        marked = self.template.answers(self.messages, self.text, self.tools)
        ends = list(range(1, len(turns) + 1))
        if marked and len(marked) != len(turns):
            # With the next turn: a template may mark how the whole conversation ends.
            parts = [self.messages[: turn + 2] for turn in turns]
            ends = [
                len(self.template.answers(part, self.expand(part, self.tools), self.tools))
                for part in parts
            ]
        starts = [0, *ends[:-1]]
        empty = any(start >= end for start, end in zip(starts, ends, strict=True))
        if not marked or empty or ends[-1] != len(marked):
            return {}
        return {
            turn: marked[start:end] for turn, start, end in zip(turns, starts, ends, strict=True)
        }

    def _mask_of_blocks(
        self, blocks: Mapping[int, list[Span]], ids: Sequence[int], offsets: Sequence[Span]
    ) -> list[int]:
        """The mask of a template that marks what the assistant writes.

        blocks: by the number of the turn. They count up to their last control token: the model
        stops there, so what a template writes behind it is never generated.

        Raises:
            Unusable: the last block does not end its turn.
        """
        mask = [0] * len(ids)
        for turn, parts in blocks.items():
            (first, end), *more = [part for part in parts if part[0] < part[1]] or parts[:1]
            spans = [(self._answer_start(turn, first), end), *more]
            self._check_written(turn, "".join(self.text[begin:end] for begin, end in spans))
            inside = [
                [
                    i
                    for i, at in enumerate(offsets)
                    if at[0] < end and self._starts(ids[i], at, begin)
                ]
                for begin, end in spans
            ]
            control = [i for i in inside[-1] if ids[i] in self.control_ids]
            if not control:
                raise self._endless()
            for i in chain.from_iterable(inside):
                if i <= control[-1]:
                    mask[i] = self.messages[turn].get("weight", 1)
        return mask

    def _answer_start(self, turn: int, begin: int) -> int:
        """The first character of a turn that the assistant must produce: behind the generation
        prompt, or behind `begin` where that comes later."""
        if not self.messages[turn].get("weight", 1):
            return begin  # a greeting has no prompt
        prompt = self._prompt(turn)
        if self.text.startswith(prompt):
            return max(begin, len(prompt))
        if self._is_last(turn):
            raise self._other_prompt(prompt)
        return begin

    def _spans(
        self, turns: Sequence[int], control: Sequence[Span]
    ) -> Iterator[tuple[int, int, int]]:
        """For each turn the first character that the assistant must produce, the end of its text,
        and whether it is to be trained on (OpenAI's `weight`). Calls that are context have none.

        control: the characters of control tokens.
        """
        spoken = [turn for turn in turns if not self.messages[turn].get("tool_calls")]
        found = dict(zip(spoken, self._content_spans(spoken), strict=True))
        for turn in turns:
            weight = self.messages[turn].get("weight", 1)
            if turn in found and not weight:
                begin, end = found[turn]  # a greeting has no prompt
            elif turn in found:
                begin, end = found[turn]
                prompt = self._prompt(turn)
                if self.text.startswith(prompt) and len(prompt) <= begin:
                    begin = len(prompt)
                elif self._is_last(turn):
                    raise self._other_prompt(prompt)
            elif weight:
                begin, stop = self._call_span(turn)
                ends = [first for first, last in control if begin <= first and last <= stop]
                if not ends:
                    raise self._endless()
                end = ends[-1]
            else:
                continue
            self._check_written(turn, self.text[begin:end])
            yield begin, end, weight

    def _call_span(self, turn: int) -> Span:
        """Where a turn is in the text, by the conversation that ends with it.

        A template may end a conversation with more control tokens than a turn, and give its last
        turn an empty thought.

        Raises:
            Unusable: it cannot be told.
        """
        prompt, is_last = self._prompt(turn), self._is_last(turn)
        part = self.messages[: turn + 1]
        wholes = (
            self.expand(part, self.tools),
            self.template.expand(part, generation_prompt=False, tools=self.tools),
        )
        if not (self.text.startswith(prompt) or is_last):
            prompt = _PROMPTED_THOUGHT.sub("", prompt)  # which earlier turns do not have
        bodies = [whole[len(prompt) :] for whole in wholes if whole.startswith(prompt)]
        if not (self.text.startswith(prompt) and bodies):
            raise self._other_prompt(prompt) if is_last else _altered()
        rest = self.text[len(prompt) :]
        for written in (*bodies, *(EMPTY_THOUGHT.sub("", body) for body in bodies)):
            same = _shared(written, rest)
            if not self.control.sub("", written[same:]).strip():
                return len(prompt), len(prompt) + same
        raise _altered()

    def _content_spans(self, turns: Sequence[int]) -> list[Span]:
        """Where the assistant's contents are in the text, with any template.

        They are rendered again between marks, first outside their white space and then, for
        templates that trim, inside it. Without the marks that text must equal the first one.
        """
        if not turns:
            return []
        mark = unused_mark(self.text)
        for inside in (False, True):
            marked = [dict(message) for message in self.messages]
            for k, turn in enumerate(turns):
                content = marked[turn]["content"]
                stripped = content.strip() if inside else content
                left = content[: len(content) - len(content.lstrip())] if inside else ""
                right = content[len(left) + len(stripped) :]
                marked[turn]["content"] = (
                    f"{left}{mark}{2 * k}{_END}{stripped}{mark}{2 * k + 1}{_END}{right}"
                )
            parts = re.split(f"{mark}(\\d+){_END}", self.expand(marked, self.tools))
            if (
                parts[1::2] == [str(k) for k in range(2 * len(turns))]
                and "".join(parts[::2]) == self.text
            ):
                ends = [sum(map(len, parts[: i + 1 : 2])) for i in range(0, len(parts) - 1, 2)]
                return list(zip(ends[::2], ends[1::2], strict=True))
        raise _altered()

    def _check_fields(self) -> None:
        """Refuse a field without which the template writes the same text, and tools that it leaves
        out.

        Raises:
            Unusable: it names the field.
        """
        why = f"the chat template of {self.folder} leaves it out here"
        for i, message in enumerate(self.messages):
            fields = ("content",) if self._may_be_lost(i) else (*TEMPLATE_FIELDS, "tool_calls")
            for field in fields:
                if not message.get(field):
                    continue
                without = [*self.messages]
                empty = {"content": ""} if field == "content" else {}
                without[i] = {**{k: v for k, v in message.items() if k != field}, **empty}
                if not self._writes_the_same(without, self.tools):
                    continue
                if field == "content":
                    raise Unusable(
                        "turn left out by the template",
                        f"the chat template of {self.folder} writes nothing of messages[{i}] "
                        f"({message['role']}) here: remove the turn, or join it with another one",
                    )
                raise _without_effect(f"messages[{i}].{field}", field, why)
        if self.tools and (
            any(name not in self.text for name in names_of(self.tools))
            or self._writes_the_same(self.messages, None)
        ):
            raise _without_effect("tools", "tools", why)

    def _may_be_lost(self, turn: int) -> bool:
        """Whether a template may leave a turn out: a result, a system turn behind others, or one of
        two turns of the user in a row."""
        role = self.messages[turn]["role"]
        beside = [self.messages[i]["role"] for i in (turn - 1, turn + 1)
                  if 0 <= i < len(self.messages)]  # fmt: skip
        return (
            role == "tool"
            or (role == "system" and turn > 0)
            or (role == "user" and "user" in beside)
        )

    def _writes_the_same(self, messages: Sequence[Message], tools: Tools) -> bool:
        """Whether the template writes another conversation as it writes this one. It may refuse
        it: a result without its call, for instance."""
        try:
            return self.expand(messages, tools) == self.text
        except Unusable:
            return False

    def _check_written(self, turn: int, written: str) -> None:
        """Refuse a field of a turn to train on that is not part of what is trained on."""
        message = self.messages[turn]
        if not message.get("weight", 1):
            return
        why = "the chat template does not write it as part of the answer"
        for field in TEMPLATE_FIELDS:
            thought = message.get(field)
            if isinstance(thought, str) and thought.strip() not in written:
                raise _without_effect(f"messages[{turn}].{field}", field, why)
        for name in names_of(message.get("tool_calls")):
            if name not in written:
                raise _without_effect(f"messages[{turn}].tool_calls", "tool_calls", why)

    def _endless(self) -> Unusable:
        return Unusable(
            "no end of turn",
            f"the chat template of {self.folder} ends the assistant's turn with no control "
            "token, so a model trained with it would never stop: add {{ eos_token }} "
            "behind the assistant's content in it",
        )

    def _other_prompt(self, prompt: str) -> Unusable:
        return Unusable(
            "prompt differs from training",
            f"the chat template of {self.folder} prompts for an answer with "
            f"{prompt[-40:]!r}, which is not how it writes one that was given, so training "
            "and serving would differ: correct the template's add_generation_prompt part",
        )


# A mark is _START, a number, _END, the number of the mark, _END: no text holds every number, and no
# part of the text together with a part of a mark reads as one.
_START, _END = "\ue000", "\ue001"


def _shared(one: str, other: str) -> int:
    """Characters of the beginning that two texts have in common."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def unused_mark(text: str) -> str:
    """The beginning of a mark that is nowhere in `text`."""
    numbers = (f"{_START}{n}{_END}" for n in count())
    return next(mark for mark in numbers if mark not in text)


def _altered() -> Unusable:
    return Unusable(
        "turn altered by the template",
        "the chat template does not show every assistant turn as it was given (some drop the "
        "reasoning of earlier turns): split it so that each row ends with the turn to train on",
    )


def _without_effect(place: str, field: str, why: str) -> Unusable:
    return Unusable(
        "unused field",
        f"{place}: {why}, so training and serving would not see it; remove it, or set "
        f"data.ignore_fields=[{field}]",
        field,
    )
