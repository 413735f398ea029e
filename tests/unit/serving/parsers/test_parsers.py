"""Answers of every family, in pieces of any size: thoughts, text and calls."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.serving.parsers.events import AnswerParser, Arguments, Call, Parser, Text, Thought
from pipeline.serving.parsers.families import FAMILIES
from pipeline.serving.parsers.json_scanner import JsonScanner
from pipeline.serving.parsers.thoughts import THINK, plain, with_thoughts

SCHEMA = {
    "properties": {
        "s": {"type": "string"},
        "n": {"type": "integer"},
        "o": {"type": "object"},
        "b": {"type": "boolean"},
    }
}
TOOLS = {"f": SCHEMA, "g": {}}
Read = tuple[str, str, list[tuple[str, str]]]


def read(parse: Parser, text: str, sizes: list[int], *, whole: bool = False) -> Read:
    """The thought, the text, and the calls of an answer that comes in parts of these sizes."""
    parser = AnswerParser(parse, TOOLS, whole=whole)
    events = []
    for size in [*sizes, len(text)]:
        events += parser.feed(text[:size])
        text = text[size:]
    shown, thought, calls = "", "", list[tuple[str, str]]()
    for event in [*events, *parser.finish()]:
        if isinstance(event, Text):
            shown += event.text
        elif isinstance(event, Thought):
            thought += event.text
        elif isinstance(event, Call):
            calls.append((event.name, ""))
        elif isinstance(event, Arguments):
            calls[-1] = calls[-1][0], calls[-1][1] + event.text
    return thought, shown, calls


F = ("f", {"s": "x"})
ANSWERS: list[tuple[str, str, str, list[Any]]] = [
    ("hermes", "No  call < at all. ", "No  call < at all. ", []),
    ("hermes", 'So:\n<tool_call>{"name": "f", "arguments": {"s": "x"}}</tool_call>', "So:", [F]),
    ("hermes", '<tool_call>\n{"arguments": {"s": "x"}, "name": "f"}\n</tool_call>', "", [F]),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"s": "x"}}</tool_call>\n<tool_call>\n'
     '{"name": "g", "arguments": {}}\n</tool_call> Done.', "Done.", [F, ("g", {})]),
    ("hermes", '<tool_call>{"name": "f", "arguments": "{\\"s\\": \\"x\\"}"}</tool_call>', "", [F]),
    ("hermes", "<tool_call>\n{}\n</tool_call>", "<tool_call>\n{}\n</tool_call>", []),
    ("llama3_json", '{"name": "f", "parameters": {"s": "x"}}', "", [F]),
    ("llama3_json", '{"cost": 18}', '{"cost": 18}', []),
    ("llama3_json", 'So {"name": "f", "parameters": {}}', 'So {"name": "f", "parameters": {}}', []),
    ("mistral_json", '[TOOL_CALLS] [{"name": "f", "arguments": {"s": "x"}, "id": "1"}, '
     '{"name": "g", "arguments": {}}]', "", [F, ("g", {})]),
    ("granite", '<|tool_call|>[{"name": "f", "arguments": {"s": "x"}}]', "", [F]),
    ("qwen3_coder", 'Hi\n<tool_call>\n<function=f>\n<parameter=s>\na "q"\nb\n</parameter>\n'
     "<parameter=n>\n5\n</parameter>\n<parameter=o>\n{\"a\": [1]}\n</parameter>\n<parameter=b>\n"
     "True\n</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=g>\n</function>\n"
     "</tool_call>", "Hi",
     [("f", {"s": 'a "q"\nb', "n": 5, "o": {"a": [1]}, "b": True}), ("g", {})]),
    ("qwen3_coder", "<function=f>\n<parameter=s>\nx</parameter></function> end", "end", [F]),
    ("glm", "<tool_call>f\n<arg_key>s</arg_key>\n<arg_value>x</arg_value>\n</tool_call>", "", [F]),
    ("glm", "<tool_call>g</tool_call>", "", [("g", {})]),
    ("deepseek_v3", "ok<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f"
     "\n```json\n"
     '{"s": "x"}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>g\n```json\n{}'
     "\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>", "ok", [F, ("g", {})]),
    ("deepseek_v31", "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>"
     '{"s": "x"}<｜tool▁call▁end｜><｜tool▁calls▁end｜> z', "z", [F]),
    ("mistral", '[TOOL_CALLS]f[ARGS]{"s": "x"}[TOOL_CALLS]g[ARGS]{}', "", [F, ("g", {})]),
    ("mistral", '[TOOL_CALLS]f[CALL_ID]abc[ARGS]{"s": "x"}', "", [F]),
    ("mistral", '[TOOL_CALLS]f{"s": "x"}', "", [F]),
    ("kimi", "<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0"
     '<|tool_call_argument_begin|>{"s": "x"}<|tool_call_end|><|tool_calls_section_end|>', "", [F]),
    ("pythonic", '[f(s="a, )b", n=1), g(o={"a": [True, None]})]', "",
     [("f", {"s": "a, )b", "n": 1}), ("g", {"o": {"a": [True, None]}})]),
    ("pythonic", "<|python_start|>[g()]<|python_end|>", "", [("g", {})]),
    ("pythonic", "[1, 2] is a list", "[1, 2] is a list", []),
    ("pythonic", "not [f()]", "not [f()]", []),
    ("gpt_oss", "<|channel|>commentary<|message|>pre<|end|><|start|>assistant to=functions.f"
     '<|channel|>commentary json<|message|>{"s": "x"}<|call|>', "pre", [F]),
    ("gpt_oss", "plain", "plain", []),
]  # fmt: skip


@pytest.mark.parametrize(("family", "text", "shown", "calls"), ANSWERS)
@settings(max_examples=15, deadline=None)
@given(sizes=st.lists(st.integers(1, 12), max_size=12))
def test_calls_are_read_however_they_come(
    family: str, text: str, shown: str, calls: list[Any], sizes: list[int]
) -> None:
    for whole in (False, True):
        thought, got, found = read(FAMILIES[family].parse, text, sizes, whole=whole)
        assert (thought, got) == ("", shown)
        assert [(name, json.loads(arguments)) for name, arguments in found] == calls


def test_every_family_has_an_answer_here() -> None:
    assert {family for family, *_ in ANSWERS} == set(FAMILIES)


@pytest.mark.parametrize(
    ("family", "text", "begun"),
    [
        ("hermes", '<tool_call>\n{"name": "f", "arguments": {"s": "x', '{"s": "x'),
        ("qwen3_coder", "<tool_call>\n<function=f>\n<parameter=s>\nab", '{"s": "ab"'),
        ("mistral", '[TOOL_CALLS]f[ARGS]{"s": [1, ', '{"s": [1, '),
        ("hermes", '<tool_call>{"name": "f", "arguments": {"s": NaN}}</tool_call>', '{"s": '),
    ],
)
def test_a_call_that_is_cut_is_text_unless_it_was_streamed(
    family: str, text: str, begun: str
) -> None:
    parse = FAMILIES[family].parse
    _, shown, calls = read(parse, text, [], whole=True)
    assert (shown.replace("\n", ""), calls) == (text.replace("\n", ""), [])
    _, _, calls = read(parse, text, [1] * len(text))
    assert calls == [("f", begun)]


@pytest.mark.parametrize(
    ("text", "begun", "thought", "shown"),
    [
        ("<think>\nabc\n</think>\n\nHello", False, "abc", "Hello"),
        ("abc </think>\n\nHi", True, "abc", "Hi"),
        ("<think>\nabc</think>x", True, "abc", "x"),
        ("no thought", False, "", "no thought"),
        ("<think>cut", False, "cut", ""),
        ("</think> odd", False, "", "</think> odd"),
    ],
)
@settings(max_examples=15, deadline=None)
@given(sizes=st.lists(st.integers(1, 9), max_size=9))
def test_thoughts_are_told_from_the_answer(
    text: str, begun: bool, thought: str, shown: str, sizes: list[int]
) -> None:
    parse = with_thoughts(THINK, plain, begun=begun)
    assert read(parse, text, sizes) == (thought, shown, [])


def test_channels_hold_thoughts() -> None:
    text = "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>Yes"
    assert read(FAMILIES["gpt_oss"].parse, text, [3] * 20) == ("hm", "Yes", [])


def test_a_call_may_follow_a_thought() -> None:
    text = '<think>x</think><tool_call>{"name": "f", "arguments": {}}</tool_call>'
    parse = with_thoughts(THINK, FAMILIES["hermes"].parse, begun=False)
    assert read(parse, text, []) == ("x", "", [("f", "{}")])


def test_nesting_too_deep_is_text() -> None:
    text = "[" * 100_000
    assert read(FAMILIES["llama3_json"].parse, text, []) == ("", text, [])
    call = '{"name": "f", "parameters": ' + '{"a":' * 100_000
    assert read(FAMILIES["llama3_json"].parse, call, [], whole=True) == ("", call, [])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=9,
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(value=json_values, ascii=st.booleans(), indent=st.sampled_from([None, 1]))
def test_the_scanner_takes_one_value(value: Any, ascii: bool, indent: int | None) -> None:
    text = json.dumps(value, ensure_ascii=ascii, indent=indent)
    scanner = JsonScanner()
    size = scanner.push(f"{text} ,rest")
    assert (scanner.done, scanner.wrong) == (True, False)
    assert text.startswith(f"{text} ,rest"[:size])


@pytest.mark.parametrize(
    "text", ["NaN", "{a: 1}", "[1,]", "{,}", '{"a" 1}', "01", "tru,", '"\\x"', '"\n"', "]", "[}"]
)
def test_the_scanner_refuses_what_is_no_json(text: str) -> None:
    scanner = JsonScanner()
    scanner.push(f"{text} ")
    assert scanner.wrong
