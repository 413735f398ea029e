"""Tools, calls and thoughts are rendered as transformers renders them.

The mask is what the template marks, or what the assistant has to produce."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.models.chat.messages import Message, Unusable
from pipeline.models.chat.renderer import Chat
from pipeline.models.chat.tool_calls import as_request, said
from pipeline.serving.openai.conversation import parse_conversation
from tests.unit.model_folders import make_model_folder
from tests.unit.serving.tool_templates import FAMILIES, tool_chat

TOOLS = [
    {"type": "function", "function": {"name": name, "description": "Of a city", "parameters": {
        "type": "object", "properties": {"city": {"type": "string"}}}}}
    for name in ("weather", "news")
]  # fmt: skip
USER = {"role": "user", "content": "How warm is it in Köln?"}
ANSWER = {"role": "assistant", "content": "7 degrees."}


def call(name: str = "weather", call_id: str = "call00000") -> dict[str, Any]:
    return {"id": call_id, "type": "function",
            "function": {"name": name, "arguments": {"city": "Köln"}}}  # fmt: skip


def calling(*calls: Any, content: str = "", **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, "tool_calls": list(calls), **more}


RESULT = {"role": "tool", "content": "7", "tool_call_id": "call00000"}
TALK = [USER, calling(call()), RESULT, ANSWER]
LONG = [*TALK, USER, calling(call(call_id="call00001")), {**RESULT, "tool_call_id": "call00001"},
        ANSWER]  # fmt: skip

# As SmolLM3 and TRL's training templates have it: a block for each piece of a turn.
HEAD = (
    "{%- if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}"
    "<|im_end|>\n{% endif %}"
)
MARKED = HEAD + (
    "{%- for m in messages %}{% if m.role == 'assistant' %}<|im_start|>assistant\n"
    "{% generation %}{% if m.reasoning_content and loop.last %}<think>\n{{ m.reasoning_content }}\n"
    "</think>\n\n{% endif %}{{ m.content }}{% for c in m.tool_calls %}\n<tool_call>\n"
    "{{ c.function | tojson }}\n</tool_call>{% endfor %}<|im_end|>{% endgeneration %}{{ '\n' }}"
    "{% elif m.role == 'tool' %}<|im_start|>user\n<tool_response>\n{{ m.content }}\n"
    "</tool_response><|im_end|>\n"
    "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Qwen 3's: thoughts since the last question only, and an empty one in a last turn without any.
QWEN3 = HEAD + (
    "{%- set ns = namespace(last=0) %}{%- for m in messages %}{%- if m.role == 'user' %}"
    "{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}"
    "{%- for m in messages %}{%- if m.role == 'assistant' %}"
    "{%- set thought = m.reasoning_content if m.reasoning_content is string else '' %}"
    "{{- '<|im_start|>assistant\n' }}"
    "{%- if loop.index0 > ns.last and (loop.last or thought) %}"
    "{{- '<think>\n' + thought + '\n</think>\n\n' }}{%- endif %}{{- m.content }}"
    "{%- for c in m.tool_calls %}{%- if not loop.first or m.content %}{{- '\n' }}{%- endif %}"
    '{{- \'<tool_call>\n{"name": "\' + c.function.name + \'", "arguments": \' }}'
    "{{- c.function.arguments | tojson }}{{- '}\n</tool_call>' }}{%- endfor %}"
    "{{- '<|im_end|>\n' }}"
    "{%- elif m.role == 'tool' %}{{- '<|im_start|>user\n<tool_response>\n' + m.content }}"
    "{{- '\n</tool_response><|im_end|>\n' }}"
    "{%- else %}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{%- endif %}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)


def loaded(folder: Path, template: str) -> Chat:
    return Chat.load(make_model_folder(folder, "chatml", template))


def trained(chat: Chat, messages: Sequence[Message], tools: Any = TOOLS) -> list[str]:
    rendered = chat.render(messages, tools)
    runs: list[list[int]] = [[]]
    for i, is_trained in zip(rendered.ids, rendered.mask, strict=True):
        if is_trained:
            runs[-1].append(i)
        elif runs[-1]:
            runs.append([])
    return [chat.decode(run, control_tokens=True) for run in runs if run]


CALLS = {
    "hermes": '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>'
              "<|im_end|>",
    "llama": '{"name": "weather", "parameters": {"city": "Köln"}}<|eot_id|>',
    "mistral": '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Köln"}, "id": '
               '"call00000"}]</s>',
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_a_call_is_trained_on_with_its_end_and_a_result_is_not(family: str, tmp_path: Path) -> None:
    chat = tool_chat(tmp_path, family)
    runs = trained(chat, TALK)
    assert runs[0].strip() == CALLS[family]
    assert len(runs) == 2
    assert runs[1].strip().startswith("7 degrees.")
    assert trained(chat, TALK[:2])[0].strip() == CALLS[family]
    assert trained(chat, [USER, calling(call(), weight=0), *TALK[2:]]) == runs[1:]
    prompt = chat.prompt(TALK[:3], TOOLS)
    assert chat.render(TALK, TOOLS).ids[: len(prompt)] == prompt


@pytest.mark.parametrize("family", FAMILIES)
def test_a_server_renders_the_same_prompt(family: str, tmp_path: Path) -> None:
    chat = tool_chat(tmp_path, family)
    asked = parse_conversation([as_request(turn) for turn in TALK[:3]])
    assert chat.prompt(asked, TOOLS) == chat.prompt(TALK[:3], TOOLS)


@pytest.mark.parametrize("talk", [TALK, LONG, TALK[:2]], ids=["talk", "long", "call"])
def test_marks_of_the_template_are_the_mask_of_transformers(
    talk: list[Message], tmp_path: Path
) -> None:
    from transformers import PreTrainedTokenizerFast

    thought = [*talk[:-1], {**talk[-1], "reasoning_content": "Hm."}]
    pieces = MARKED.replace("{% for c in m", "{% endgeneration %}{% generation %}{% for c in m")
    for number, template in enumerate((MARKED, pieces)):
        chat = loaded(tmp_path / str(number), template)
        reference = PreTrainedTokenizerFast.from_pretrained(tmp_path / str(number))
        for messages in (talk, thought):
            expected = reference.apply_chat_template(
                messages, tools=TOOLS, return_dict=True, return_assistant_tokens_mask=True
            )
            rendered = chat.render(messages, TOOLS)
            assert rendered.ids == expected["input_ids"]
            assert rendered.mask == expected["assistant_masks"]
            assert sum(rendered.mask) > 0


@pytest.mark.parametrize("talk", [TALK, LONG, TALK[:2]], ids=["talk", "long", "call"])
def test_without_marks_the_mask_is_the_same(talk: list[Message], tmp_path: Path) -> None:
    plain = MARKED.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    chat, marked = loaded(tmp_path / "plain", plain), loaded(tmp_path / "marked", MARKED)
    assert chat.render(talk, TOOLS) == marked.render(talk, TOOLS)


def test_thoughts_before_calls_are_trained_on(tmp_path: Path) -> None:
    chat = loaded(tmp_path, QWEN3)
    two = calling(call(), call("news", "b"), content="Well.", reasoning_content="Ask.")
    other = {**RESULT, "tool_call_id": "b"}
    talk = [USER, two, RESULT, other, {**ANSWER, "reasoning_content": "Told."}]
    first, last = trained(chat, talk)
    assert first.startswith("<think>\nAsk.\n</think>\n\nWell.\n<tool_call>")
    assert first.endswith("</tool_call><|im_end|>")
    assert first.count("<tool_call>") == 2
    assert last == "<think>\nTold.\n</think>\n\n7 degrees.<|im_end|>"
    # A call without a thought has none in the middle, and an empty one at the end.
    assert trained(chat, TALK)[0].startswith("<tool_call>")
    assert trained(chat, TALK[:2])[0].startswith("<think>\n\n</think>\n\n<tool_call>")


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_a_thought_is_written_under_any_of_its_names(name: str, tmp_path: Path) -> None:
    chat = loaded(tmp_path, QWEN3)
    talk = chat.as_written([USER, {**ANSWER, name: "Told."}])
    assert talk[1] == {**ANSWER, "reasoning_content": "Told."}
    assert trained(chat, talk, None) == ["<think>\nTold.\n</think>\n\n7 degrees.<|im_end|>"]


def test_a_turn_whose_thought_the_template_drops_is_context(tmp_path: Path) -> None:
    thought = {**ANSWER, "reasoning": "Told."}
    chat = loaded(tmp_path / "plain", QWEN3)
    talk = chat.as_written([USER, thought, USER, thought])
    assert talk[1] == {**ANSWER, "weight": 0}
    assert trained(chat, talk, None) == ["<think>\nTold.\n</think>\n\n7 degrees.<|im_end|>"]
    # With marks, they decide.
    marked = loaded(tmp_path / "marked", MARKED)
    talk = marked.as_written([USER, thought, USER, thought])
    assert len(trained(marked, talk, None)) == 2
    # In the content, too.
    splits = QWEN3.replace("{{- m.content }}", "{{- m.content.split('</think>')[-1] }}", 1)
    inline = {**ANSWER, "content": "<think>Told.</think>7 degrees."}
    talk = loaded(tmp_path / "inline", splits).as_written([USER, inline, USER, ANSWER])
    assert talk[1] == {**ANSWER, "weight": 0}


@pytest.mark.parametrize(
    ("talk", "tools", "field"),
    [
        (TALK, None, "tool_calls"),
        ([USER, ANSWER], TOOLS, "tools"),
        ([USER, {**ANSWER, "thinking": "Hm."}], None, "thinking"),
    ],
)
def test_what_a_template_leaves_out_is_refused(
    talk: list[Message], tools: Any, field: str, tmp_path: Path
) -> None:
    chat = Chat.load(make_model_folder(tmp_path, "chatml"))
    with pytest.raises(Unusable) as caught:
        chat.render(chat.as_written(talk, tools), tools)
    assert caught.value.field == field


def test_text_of_a_turn_with_calls_does_not_depend_on_ids_and_order() -> None:
    one, other = call(), call(call_id="x")
    other["function"]["arguments"] = {"unit": "C", "city": "Köln"}
    one["function"]["arguments"] = {"city": "Köln", "unit": "C"}
    assert said(calling(one, content="Well.")) == said(calling(other, content="Well."))
    assert said(calling(one)).startswith('{"arguments": {')
    assert said(ANSWER) == "7 degrees."


# As DeepSeek V3 has it: arguments as text, a prompt that opens a thought.
TEXT_ARGUMENTS = HEAD + (
    "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\n' }}{%- for c in m.tool_calls %}"
    "{{- '<tool_call>' + c.function.name + ' ' + c.function.arguments + '</tool_call>' }}"
    "{%- endfor %}{{- m.content + '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
# As GPT-OSS has it: a result without its call is refused.
STRICT = TEXT_ARGUMENTS.replace(
    "{%- for m in messages %}",
    "{%- set ns = namespace(called=false) %}{%- for m in messages %}"
    "{%- if m.tool_calls %}{%- set ns.called = true %}{%- endif %}"
    "{%- if m.role == 'tool' and not ns.called %}{{- raise_exception('no call') }}{%- endif %}",
)
# As Phi-3's training template has it: the end of the whole conversation is marked, too.
MARKED_END = (
    "{%- for m in messages %}{%- if m.role == 'assistant' %}{{- '<|im_start|>assistant\n' }}"
    "{%- generation %}{{- m.content + '<|im_end|>\n' }}{%- endgeneration %}"
    "{%- else %}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{%- endif %}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
    "{%- elif messages[-1].role == 'assistant' %}"
    "{%- generation %}{{- '<|endoftext|>' }}{%- endgeneration %}{%- endif %}"
)


@pytest.mark.parametrize("template", [TEXT_ARGUMENTS, STRICT], ids=["text", "strict"])
def test_templates_that_take_arguments_as_text_or_want_each_call(
    template: str, tmp_path: Path
) -> None:
    chat = loaded(tmp_path, template)
    assert trained(chat, TALK) == [
        '<tool_call>weather {"city": "Köln"}</tool_call><|im_end|>', "7 degrees.<|im_end|>",
    ]  # fmt: skip


def test_a_block_behind_the_turns_belongs_to_the_last_one(tmp_path: Path) -> None:
    chat = loaded(tmp_path, MARKED_END)
    ends = ["7 degrees.<|im_end|>", "7 degrees.<|im_end|>\n<|endoftext|>"]
    assert trained(chat, [USER, ANSWER, USER, ANSWER], None) == ends
    first = {**ANSWER, "weight": 0}
    assert trained(chat, [USER, first, USER, ANSWER], None) == ends[1:]


def test_a_template_that_has_an_empty_thought_of_its_own(tmp_path: Path) -> None:
    """As Nemotron 3 and Qwen 3.5: prompts open a thought, or close an empty one at once."""
    opening = QWEN3.replace("'<|im_start|>assistant\n' }}{%- endif %}",
                            "'<|im_start|>assistant\n<think>\n' }}{%- endif %}")  # fmt: skip
    nemotron = opening.replace("(loop.last or thought)", "true").replace(
        "'<think>\n' + thought + '\n</think>\n\n'", "'<think></think>'"
    )
    chat = loaded(tmp_path / "nemotron", nemotron)
    assert trained(chat, TALK) == [
        '<think></think><tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n'
        "</tool_call><|im_end|>",
        "\n</think>\n\n7 degrees.<|im_end|>",
    ]
    closed = opening.replace("assistant\n<think>\n' }}", "assistant\n<think>\n\n</think>\n\n' }}")
    chat = loaded(tmp_path / "qwen", closed)
    assert [run[:11] for run in trained(chat, LONG)] == ["<tool_call>", "7 degrees.<"] * 2
    # A thought in the middle begins behind its prompt, also where a line break follows.
    chat = loaded(tmp_path / "opening", opening)
    talk = [USER, calling(call(), reasoning_content="\nAsk."), RESULT, ANSWER]
    rendered, prompt = chat.render(talk, TOOLS), chat.prompt(talk[:1], TOOLS)
    assert rendered.ids[: len(prompt)] == prompt
    assert rendered.mask[len(prompt)] == 1
    assert rendered.mask[len(prompt) - 1] == 0


def test_an_answer_is_what_follows_the_thought(tmp_path: Path) -> None:
    chat = loaded(tmp_path / "plain", QWEN3)
    written = chat.render([USER, {**ANSWER, "reasoning_content": "Told."}])
    ids = [i for i, trained in zip(written.ids, written.mask, strict=True) if trained]
    assert chat.answer(ids) == "7 degrees."
    assert chat.answer(chat.encode("7 degrees.")) == "7 degrees."
    # Where the prompt begins the thought, all is a thought until its end.
    opening = QWEN3.replace("{{- '<|im_start|>assistant\n' }}{%- endif %}",
                            "{{- '<|im_start|>assistant\n<think>\n' }}{%- endif %}")  # fmt: skip
    assert opening != QWEN3
    chat = loaded(tmp_path / "opening", opening)
    rendered = chat.render([USER, ANSWER])
    prompt = chat.prompt([USER])
    assert chat.answer(rendered.ids[len(prompt) : -2]) == "7 degrees."
    assert chat.answer(chat.encode("Hm")) == ""
