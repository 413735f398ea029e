"""What a model's answers look like, read from its chat template: thoughts, and tool calls.

A call with known words is rendered, and the text around its JSON is how this model begins and ends
a call. That covers every template that writes JSON. Others are recognized by what they write
(families.py).
"""

import importlib
import json
import secrets
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.core.errors import ConfigError, DataError
from pipeline.models.chat.renderer import Chat
from pipeline.serving.parsers.events import Parser
from pipeline.serving.parsers.families import FAMILIES, PROBE, ToolFamily, json_family
from pipeline.serving.parsers.harmony import CHANNEL, harmony
from pipeline.serving.parsers.json_calls import JsonCalls
from pipeline.serving.parsers.thoughts import MARKS, Marks, plain, with_thoughts

KEY, VALUE, TEXT = "probe_key", "probe_value", "probe_text"
# Mistral's templates require nine letters and digits.
ID_LENGTH = 9
_LETTERS = string.ascii_letters + string.digits
_DECODER = json.JSONDecoder()
END_TOKENS = 16  # of a prompt, which hold the mark that begins a thought
NONE = "none"  # of serve.tool_parser and serve.reasoning_parser


@dataclass(frozen=True)
class AnswerFormat:
    """How a model answers.

    Attributes:
        accepts_tools: whether the template shows tools to the model.
        tools: the family of its calls; None if it writes none that are known.
        thoughts: what its thoughts are between; None if it has none, or in channels.
        channels: whether it answers in channels, as GPT-OSS does.
    """

    accepts_tools: bool = False
    tools: ToolFamily | None = None
    thoughts: Marks | None = None
    channels: bool = False

    def parser(self, *, with_tools: bool, thinks: bool, begun: bool) -> Parser | None:
        """The parser of an answer; None if it is only text.

        Args:
            with_tools: whether the model was shown tools.
            thinks: whether thoughts are told from the answer.
            begun: whether the prompt has begun a thought.
        """
        if self.channels:
            return harmony
        rest = self.tools.parse if with_tools and self.tools else None
        if self.thoughts and thinks:
            return with_thoughts(self.thoughts, rest or plain, begun=begun)
        return rest

    def shows_control(self, chat: Chat, *, with_tools: bool) -> bool:
        """Whether the parser needs control tokens, which decoding leaves out by default."""
        marks = [*(self.thoughts or ())]
        if self.tools and (with_tools or self.channels):
            marks += self.tools.marks
        if self.channels:
            marks.append(CHANNEL)
        return any(_is_hidden(chat, mark) for mark in marks if mark)

    def begins_thought(self, chat: Chat, prompt: Sequence[int]) -> bool:
        """Whether a prompt ends within a thought."""
        if self.thoughts is None:
            return False
        end = chat.decode(prompt[-END_TOKENS:], control_tokens=True)
        return end.rstrip().endswith(self.thoughts.opening)


def answer_format(
    chat: Chat, tool_parser: str | None = None, reasoning_parser: str | None = None
) -> AnswerFormat:
    """The format of a model's answers.

    Args:
        tool_parser: a name of FAMILIES, `module:function` for a parser of one's own, or none;
            None reads the template. reasoning_parser: the same, with the opening mark as a name.

    Raises:
        ConfigError: there is no such parser.
    """
    tools = _find_tools(chat) if tool_parser is None else _named_tools(tool_parser)
    channels = CHANNEL in chat.template.source and CHANNEL in chat.tokenizer.get_vocab()
    if tools and tools.name == "gpt_oss":
        channels = True
    return AnswerFormat(
        accepts_tools=accepts_tools(chat),
        tools=tools,
        thoughts=_thoughts(chat, reasoning_parser),
        channels=channels and reasoning_parser != NONE,
    )


def serves_tools(chat: Chat) -> bool:
    """Whether the server of this model takes tools and can parse calls of them."""
    answers = answer_format(chat)
    return answers.accepts_tools and answers.tools is not None


def _named_tools(name: str) -> ToolFamily | None:
    if name == NONE:
        return None
    if ":" in name:
        return ToolFamily(name, _own(name, "serve.tool_parser"))
    if name not in FAMILIES:
        names = ", ".join(FAMILIES)
        raise ConfigError(
            f"serve.tool_parser={name} is no parser: choose {names}, none, or module:function"
        )
    return FAMILIES[name]


def _own(name: str, setting: str) -> Parser:
    """A parser of the user's own: a function in a module that Python finds."""
    module, _, function = name.partition(":")
    try:
        return getattr(importlib.import_module(module), function)  # type: ignore[no-any-return]
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"{setting}={name} cannot be imported ({error}): give module:function, and put the "
            "module on PYTHONPATH"
        ) from error


def _thoughts(chat: Chat, named: str | None) -> Marks | None:
    if named == NONE:
        return None
    if named is not None:
        names = {marks.opening[1:-1]: marks for marks in MARKS}
        found = names.get(named)
        if found is None:
            raise ConfigError(
                f"serve.reasoning_parser={named} is no parser: choose {', '.join(names)}, or none"
            )
        return found
    vocabulary = chat.tokenizer.get_vocab(with_added_tokens=True)
    source = chat.template.source
    for marks in MARKS:
        if all(mark in source or mark in vocabulary for mark in marks):
            return marks
    return None


def accepts_tools(chat: Chat) -> bool:
    """Whether the template renders the list of tools."""
    try:
        return PROBE in chat.text(_question(), generation_prompt=True, tools=_tools())
    except DataError:
        return False


def _find_tools(chat: Chat) -> ToolFamily | None:
    """The family of calls that the template writes."""
    written = _written_call(chat)
    if written is None:
        return None
    if found := next((f for f in FAMILIES.values() if f.written and f.written(written)), None):
        return found
    form = _json_form(chat, written)
    return json_family("json", form) if form else None


def _written_call(chat: Chat) -> str | None:
    """What the template writes for an assistant's turn with text and a call, behind the text."""
    call = {"name": PROBE, "arguments": {KEY: VALUE}}
    turn = {
        "role": "assistant",
        "content": TEXT,
        "tool_calls": [{"id": new_id(), "type": "function", "function": call}],
    }
    try:
        before = chat.text(_question(), tools=_tools())
        prompt = chat.text(_question(), generation_prompt=True, tools=_tools())
        whole = chat.text([*_question(), turn], tools=_tools())
    except DataError:
        return None
    begin = next((text for text in (prompt, before) if whole.startswith(text)), None)
    if begin is None:
        return None
    # The call comes after the turn's own text, if the template renders both.
    return whole[len(begin) :].rpartition(TEXT)[2]


def _json_form(chat: Chat, written: str) -> JsonCalls | None:
    for start, letter in enumerate(written):
        if letter not in "[{":
            continue
        try:
            value, end = _DECODER.raw_decode(written, start)
        except ValueError:
            continue
        listed = isinstance(value, list)
        found = value[0] if listed and len(value) == 1 else value
        named = isinstance(found, dict) and found.get("name") == PROBE
        wanted = ({KEY: VALUE}, json.dumps({KEY: VALUE}))
        keys = [k for k, v in found.items() if v in wanted] if named else []
        if keys:
            closing = _before_end_of_turn(chat, written[end:])
            return JsonCalls(written[:start].lstrip(), closing, keys[0], listed)
    return None


def new_id() -> str:
    return "".join(secrets.choice(_LETTERS) for _ in range(ID_LENGTH))


def _is_hidden(chat: Chat, mark: str) -> bool:
    ids = list(chat.tokenizer.encode(mark, add_special_tokens=False).ids)
    return chat.decode(ids).strip() != mark.strip()


def _question() -> list[dict[str, Any]]:
    return [{"role": "user", "content": "a"}]


def _tools() -> list[dict[str, Any]]:
    parameters = {"type": "object", "properties": {KEY: {"type": "string"}}, "required": [KEY]}
    function = {"name": PROBE, "description": "a", "parameters": parameters}
    return [{"type": "function", "function": function}]


def _before_end_of_turn(chat: Chat, text: str) -> str:
    """The part of a text before the stop token of the assistant's turn."""
    ends = [chat.decode([i], control_tokens=True) for i in chat.stop_ids]
    return text[: min((at for at in map(text.find, ends) if at >= 0), default=len(text))]
