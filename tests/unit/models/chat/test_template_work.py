"""A template's limit holds for any template, and the clock has no part in it."""

import json
import subprocess
import sys
import time
from typing import Any

import pytest

from pipeline.models.chat.messages import Unusable
from pipeline.models.chat.template import ChatTemplate
from pipeline.models.chat.template_work import work_for
from tests.unit.model_folders import TEMPLATES
from tests.unit.models.chat.hostile_templates import HOSTILE
from tests.unit.serving.tool_templates import FAMILIES

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "search",
            "description": "Finds “rates” by name.",
            "parameters": {
                "type": "object",
                "properties": {
                    "name": {"type": "string", "enum": ["a", "b"]},
                    "range": {"type": "object", "properties": {"from": {"type": "integer"}}},
                },
                "required": ["name"],
            },
        },
    }
]
USER, ANSWER = {"role": "user", "content": " Hi, é. \n"}, {"role": "assistant", "content": "Yes."}
CONVERSATIONS: list[list[dict[str, Any]]] = [
    [USER],
    [{"role": "system", "content": "Be brief."}, USER, ANSWER, USER],
    [USER, {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nNo."}, USER, ANSWER],
    [
        USER,
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {
                    "id": "abcdefghi",
                    "type": "function",
                    "function": {"name": "search", "arguments": {"name": "a", "n": [1, 2.5, None]}},
                }
            ],
        },
        {"role": "tool", "content": "4 %", "tool_call_id": "abcdefghi", "name": "search"},
    ],
    [{"role": "user", "content": [{"type": "text", "text": "In parts."}]}, ANSWER],
    [ANSWER, USER],
]
# What the templates of well-known families use, each in a few lines.
USED = {
    "a namespace and a split": "{%- set ns = namespace(system='', first=true) -%}"
    "{%- for m in messages if m.role == 'system' %}"
    "{%- set ns.system = ns.system + ('' if ns.first else '\n\n') ~ m['content'] %}"
    "{%- set ns.first = false %}{%- endfor %}{{ bos_token }}{{ ns.system }}"
    "{%- for m in messages %}{%- if m.content is string and '</think>' in m.content %}"
    "{{- m.content.split('</think>')[-1].lstrip('\n') }}{%- endif %}{%- endfor %}",
    "a look ahead": "{%- for m in messages %}{%- set f = namespace(found=false) %}"
    "{%- for later in messages[loop.index:] %}{%- if later.role == 'assistant' %}"
    "{%- set f.found = true %}{% break %}{%- endif %}{%- endfor %}{{ m.role }}{{ f.found }}"
    "{%- endfor %}",
    "a look back": "{%- for m in messages[::-1] %}"
    "{%- set i = (messages | length - 1) - loop.index0 %}"
    "{%- if i > 0 and not (messages[i - 1].role == m.role) %}{{ i }}{{ m.role | upper }}"
    "{%- else %}{% continue %}{%- endif %}{%- endfor %}{{ messages[-1]['role'] }}",
    "a schema by macros": "{%- macro type(s, depth) %}{%- if s.type == 'object' %}{ "
    "{% for name, p in "
    "s.properties.items() %}{{ name }}{{ '?' if name not in (s.required or []) }}: "
    "{{ type(p, depth + 1) }}{{ ', ' if not loop.last }}{% endfor %} }{%- elif s.enum %}"
    "{{- s.enum | map('tojson') | join(' | ') }}{%- else %}{{- s.type ~ depth }}{%- endif %}"
    "{%- endmacro %}{%- for t in tools or [] %}{{ type(t.function.parameters, 0) }}{%- endfor %}",
    "a caller": "{% macro turn(role) %}<{{ role }}>{{ caller() }}</{{ role }}>{% endmacro %}"
    "{% for m in messages %}{% call turn(m.role) %}{{ m.content }}{% endcall %}{% endfor %}",
    "JSON": "{{ tools | tojson(indent=4) if tools }}{{ messages | tojson(sort_keys=true) }}"
    "{{ messages | tojson(ensure_ascii=true, separators=(',', ':')) }}{{ tools }}{{ messages[0] }}",
    "filters": "{{ messages | map(attribute='role') | join(', ') }}"
    "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}"
    "{{ messages | rejectattr('role', 'in', ['user', 'tool']) | map(attribute='role') | list }}"
    "{{ messages | map(attribute='role') | unique | sort(reverse=true) | first }}"
    "{{ messages[0] | dictsort }}{{ messages[0].items() | list | last }}{{ ('a\nb') | indent(2) }}"
    "{{ messages[0] | items | list }}{{ 'abc' | reverse | capitalize | replace('c', 'd') }}"
    "{{ [3, 1] | sum }}{{ [1, 2, 3] | batch(2, 0) | list }}{{ '%s-%05.1f' | format('x', 2) }}"
    "{{ 7 | float / 2 }}{{ '12' | int // 5 }}{{ -7 | abs }}{{ none | default('n', true) }}"
    "{{ 2.567 | round(1) }}{{ missing | default('d') }}{{ ' x ' | trim | e }}"
    "{{ 'a' | safe ~ '<' }}",
    "methods": "{{ 'a-b'.partition('-') }}{{ 'ab'.startswith('a') }}{{ 'x'.rjust(3, '.') }}"
    "{{ '{}:{n:>4}'.format('a', n=2) }}{{ '%d%%' % 5 }}{{ 'ab'.find('b') }}{{ 'a b'.split() }}"
    "{{ 'a,b,c'.rsplit(',', 1) }}{{ '-'.join(['a', 'b']) }}{{ {'a': 1}.get('b', 2) }}"
    "{{ 'aab'.strip('a') }}{{ 'T'.isupper() }}{{ 'a'.removesuffix('a') }}{{ [1, 1].count(1) }}"
    "{{ range(3) | list }}{{ dict(a=1) }}{{ 'x\ty'.expandtabs(4) }}{{ 'a\nb'.splitlines() }}",
    "tests": "{% for v in [none, true, 0, 1.5, 'x', [], {}, missing] %}{{ v is none }}"
    "{{ v is string }}"
    "{{ v is mapping }}{{ v is iterable }}{{ v is defined }}{{ v is number }}{{ v is boolean }}"
    "{{ v == 'x' }}{{ v in ['x', 0] }}{{ v is sameas true }}{% endfor %}{{ 3 is odd }}"
    "{{ 1 < messages | length <= 3 }}{{ 'x' ~ 1 ~ none }}{{ 'role' in messages[0] }}",
    "blocks": "{% set text %}{% for m in messages %}{{ loop.cycle('a', 'b') }}{{ loop.revindex }}"
    "{% generation %}{{ m.role }}{% endgeneration %}{% else %}none{% endfor %}{% endset %}"
    "{% filter upper %}{{ text }}{% endfilter %}{% with a = 1, b = 2 %}{{ a + b * 2 ** 3 }}"
    "{% endwith %}"
    "{# a comment #}{{ text if add_generation_prompt else '' }}{{ '' if tools is none }}",
    "a refusal": "{% if messages[0].role != 'user' %}{{ raise_exception('the user first') }}"
    "{% endif %}"
    "{{ messages[0].content + '' }}",
}
GOOD = {**TEMPLATES, **{name: text for name, (_, text, _) in FAMILIES.items()}, **USED}


@pytest.mark.parametrize("name", GOOD)
def test_a_good_template_gives_what_transformers_gives(name: str) -> None:
    from transformers.utils.chat_template_utils import _compile_jinja_template

    ours, theirs = ChatTemplate(GOOD[name], SPECIAL, "here"), _compile_jinja_template(GOOD[name])
    rendered = 0
    for messages in CONVERSATIONS:
        for tools in (None, TOOLS):
            for asked in (False, True):
                given = {"messages": messages, "tools": tools, "documents": None, **SPECIAL}
                try:
                    expected = theirs.render(add_generation_prompt=asked, **given)
                except Exception:
                    with pytest.raises(Unusable):
                        ours.expand(messages, generation_prompt=asked, tools=tools)
                    continue
                assert ours.expand(messages, generation_prompt=asked, tools=tools) == expected
                rendered += 1
    assert rendered


def test_a_hostile_template_is_refused_within_seconds_and_200_mib() -> None:
    module = "tests.unit.models.chat.hostile_templates"
    run = subprocess.run(
        [sys.executable, "-m", module], capture_output=True, text=True, timeout=300
    )
    assert not run.returncode, run.stderr
    verdicts = [json.loads(line) for line in run.stdout.splitlines()]
    assert [verdict["name"] for verdict in verdicts] == list(HOSTILE)
    for verdict in verdicts:
        # In a limit's words, neither Python's nor those of a mistake in a price.
        assert any(reason in (verdict["error"] or "") for reason in REASONS), verdict
        assert verdict["seconds"] < 5, verdict


REASONS = (
    "too much work for a conversation",
    "over 100 deep",
    "macros call one another",
    "may not use",
    "asks for over 999 characters",
    "looks a tuple up",
    "looks a list up",
    "as text",
    "is no number",
    "of over 128 bits",
    "without end",
    "indented too far",
    "a recursive loop",
    "No filter named",
    "'lipsum' is undefined",
    "list (chat template of here)",  # what its own message was about
    "has over 256 characters",
    "line 1 has",
    "is unsafe",
    "maximum recursion depth exceeded",  # of a compiler
    "KiB: shorten it",
)


def test_the_clock_does_not_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look at the clock finds it an hour later: as on a machine that does other work."""
    hours = iter(range(10**6))
    for clock in ("monotonic", "time", "perf_counter", "process_time"):
        monkeypatch.setattr(time, clock, lambda: 3600.0 * next(hours))
    template = ChatTemplate(TEMPLATES["llama3"], SPECIAL, "here")
    assert template.expand([USER, ANSWER], generation_prompt=False)


def test_a_longer_conversation_may_take_more_work() -> None:
    template = ChatTemplate(USED["a look ahead"], SPECIAL, "here")
    assert template.expand([USER, ANSWER] * 400, generation_prompt=False).count("True") == 799
    assert work_for([USER]) < work_for([USER, ANSWER]) < work_for([USER] * 10**4)
    long = {"role": "user", "content": "x" * 2**22}
    chatml = ChatTemplate(TEMPLATES["chatml"], SPECIAL, "here")
    assert len(chatml.expand([long], generation_prompt=True)) > 2**22


def test_a_rendering_that_is_too_long_is_refused() -> None:
    template = ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}", SPECIAL, "here")
    with pytest.raises(Unusable, match="without end"):
        template.expand([{"role": "user", "content": "x" * 2**23}] * 3, generation_prompt=False)
