"""Calls that are a name and then arguments in JSON: DeepSeek, Mistral's newer models, Kimi."""

from collections.abc import Generator
from dataclasses import dataclass

from pipeline.serving.parsers.events import Event, Parser, Parsing, Source, Text


@dataclass(frozen=True)
class NamedCalls:
    """Calls are between `section` and `section_end`. A call is `opening`, `before_name`, the name,
    `after_name`, its arguments, and `closing`.
    """

    opening: str
    after_name: str
    closing: str
    before_name: str = ""
    section: str = ""
    section_end: str = ""


DEEPSEEK_V3 = NamedCalls(
    section="<｜tool▁calls▁begin｜>",
    opening="<｜tool▁call▁begin｜>",
    before_name="function<｜tool▁sep｜>",
    after_name="\n```json\n",
    closing="\n```<｜tool▁call▁end｜>",
    section_end="<｜tool▁calls▁end｜>",
)
DEEPSEEK_V31 = NamedCalls(
    section="<｜tool▁calls▁begin｜>",
    opening="<｜tool▁call▁begin｜>",
    after_name="<｜tool▁sep｜>",
    closing="<｜tool▁call▁end｜>",
    section_end="<｜tool▁calls▁end｜>",
)
MISTRAL = NamedCalls(opening="[TOOL_CALLS]", after_name="[ARGS]", closing="")
KIMI = NamedCalls(
    section="<|tool_calls_section_begin|>",
    opening="<|tool_call_begin|>",
    before_name="functions.",
    after_name="<|tool_call_argument_begin|>",
    closing="<|tool_call_end|>",
    section_end="<|tool_calls_section_end|>",
)


def named_calls(form: NamedCalls) -> Parser:
    """A parser of calls in this form."""

    def parse(source: Source) -> Parsing:
        marks = tuple(filter(None, (form.section, form.opening)))
        while True:
            found = yield from source.text_until(*marks)
            if not found:
                return
            if found == form.section:
                found += form.opening if (yield from source.skip(form.opening)) else ""
            if not found.endswith(form.opening):
                yield Text(found)
                continue
            calls = source.calls
            left = yield from source.attempt(_call(source, form))
            if left is None:
                yield from source.skip_space()
                if form.section_end and (yield from source.skip(form.section_end)):
                    yield from source.skip_space()
            elif text := (found if source.calls == calls else "") + left:
                yield Text(text)

    return parse


def _call(source: Source, form: NamedCalls) -> Generator[Event | None, None, str | None]:
    if form.before_name:
        yield from source.skip(form.before_name)
    # Some of Mistral's models leave out what separates the name from the arguments.
    ends = (form.after_name, "{")
    name, mark = yield from source.take_until(*ends)
    if not mark:
        return name
    if mark == "{":
        source.text = mark + source.text
    # Kimi numbers its calls: get_weather:0.
    name = name.strip().partition(":")[0] if form is KIMI else name.strip().partition("[")[0]
    left = yield from source.arguments(name)
    if left is None and form.closing:
        yield from source.skip(form.closing.strip())
    return left
