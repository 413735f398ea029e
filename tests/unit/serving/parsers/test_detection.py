"""What a model's answers look like is read from its template, or named."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.core.errors import ConfigError
from pipeline.models.chat.renderer import Chat
from pipeline.serving.parsers import detection
from pipeline.serving.parsers.detection import answer_format
from pipeline.serving.parsers.events import Parsing, Source
from tests.unit.model_folders import make_model_folder
from tests.unit.serving.tool_templates import FAMILIES, tool_chat

# A template that shows its tools, and writes calls as each family does.
START = (
    "{%- if tools %}{{- '<|im_start|>system\n' + (tools | tojson) + '<|im_end|>\n' }}{%- endif %}"
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\n' }}"
    "{{- message.content }}{%- for call in message.tool_calls or [] %}{%- set f = call.function %}"
)
END = (
    "{%- endfor %}{{- '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
WRITTEN = {
    "qwen3_coder": "{{- '<tool_call>\n<function=' + f.name + '>' }}"
    "{%- for k, v in f.arguments|items %}{{- '<parameter=' + k + '>\n' + v + '\n</parameter>' }}"
    "{%- endfor %}{{- '</function>' }}",
    "glm": "{{- '<tool_call>' + f.name }}{%- for k, v in f.arguments|items %}{{- '<arg_key>' + k"
    " + '</arg_key>' }}{%- endfor %}",
    "deepseek_v3": "{{- '<｜tool▁call▁begin｜>function<｜tool▁sep｜>' + f.name + f.arguments }}",
    "deepseek_v31": "{{- '<｜tool▁call▁begin｜>' + f.name + '<｜tool▁sep｜>' + f.arguments }}",
    "mistral": "{{- '[TOOL_CALLS]' + f.name + '[ARGS]' + (f.arguments | tojson) }}",
    "kimi": "{{- 'functions.' + f.name + ':0<|tool_call_argument_begin|>' + f.arguments|tojson }}",
    "gpt_oss": "{{- '<|channel|>commentary to=functions.' + f.name + (f.arguments | tojson) }}",
    "pythonic": "{{- '[' + f.name + '(' }}{%- for k, v in f.arguments|items %}{{- k + '=' + v }}"
    "{%- endfor %}{{- ')]' }}",
}


def chat_of(folder: Path, template: str) -> Chat:
    return Chat.load(make_model_folder(folder, "chatml", template))


@pytest.mark.parametrize("family", sorted(WRITTEN))
def test_a_family_is_recognized_by_what_the_template_writes(tmp_path: Path, family: str) -> None:
    found = answer_format(chat_of(tmp_path, START + WRITTEN[family] + END))
    assert found.accepts_tools
    assert found.tools
    assert found.tools.name == family


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_json_is_read_off_any_template(tmp_path: Path, name: str) -> None:
    chat = tool_chat(tmp_path, name)
    found = answer_format(chat)
    assert found.tools
    assert (found.tools.name, found.accepts_tools) == ("json", True)
    openings = {"hermes": "<tool_call>\n", "llama": "", "mistral": "[TOOL_CALLS] "}
    assert found.tools.opening == openings[name]
    assert found.shows_control(chat, with_tools=True) == (name == "mistral")


def thinking(folder: Path) -> Chat:
    opened = END.replace("assistant\n", "assistant\n<think>\n")
    return chat_of(folder, START + "{%- endfor %}{%- for x in [] %}</think>" + opened)


def test_thoughts_are_read_off_the_template(tmp_path: Path) -> None:
    chat = thinking(tmp_path)
    found = answer_format(chat)
    assert found.thoughts
    assert found.thoughts.opening == "<think>"
    prompt = chat.prompt([{"role": "user", "content": "a"}])
    assert found.begins_thought(chat, prompt)
    assert not found.begins_thought(chat, chat.encode("a"))
    assert answer_format(chat, reasoning_parser="none").thoughts is None


def test_parsers_can_be_named(tmp_path: Path) -> None:
    chat = thinking(tmp_path)
    tools = answer_format(chat, "pythonic").tools
    assert tools
    assert tools.name == "pythonic"
    assert answer_format(chat, "none").tools is None
    for wrong in ({"tool_parser": "hermez"}, {"reasoning_parser": "thinks"}):
        with pytest.raises(ConfigError, match="is no parser: choose"):
            answer_format(chat, **wrong)


def my_parser(source: Source) -> Parsing:
    """One function is a plug-in."""
    if (yield from source.text_until("CALL ")):
        name, _ = yield from source.take_until(" ")
        yield from source.arguments(name)


def test_a_parser_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = thinking(tmp_path)
    named = f"{__name__}:my_parser"
    found: Any = answer_format(chat, named).tools
    assert found.parse is my_parser
    for wrong in ("no_module_here:f", f"{__name__}:no_function"):
        with pytest.raises(ConfigError, match="cannot be imported"):
            answer_format(chat, wrong)


def test_ids_are_short(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(detection.new_id()) == 9
