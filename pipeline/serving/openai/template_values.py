"""What a request gives to the chat template beside messages and tools: chat_template_kwargs,
reasoning_effort, verbosity and documents.

A value that the template does not read would have no effect, so it is refused, unless it asks for
nothing.
"""

from typing import Any

from pipeline.models.chat.template import ChatTemplate
from pipeline.serving.openai.errors import invalid, shortened
from pipeline.serving.openai.protocol import ChatRequest

# Names that a request cannot set, since the server does.
RESERVED = frozenset(
    "messages tools documents add_generation_prompt bos_token eos_token pad_token unk_token "
    "raise_exception strftime_now namespace range loop".split()
)
# Switches of thinking, by the names that templates give it.
THINKING = ("enable_thinking", "thinking")
USUAL_VERBOSITY = "medium"


def template_values(body: ChatRequest, template: ChatTemplate) -> dict[str, Any]:
    """The template's variables.

    Raises:
        ApiError: the template does not read a value that was given.
    """
    values: dict[str, Any] = {}
    given = body.chat_template_kwargs or {}
    for name, value in given.items():
        where = f"chat_template_kwargs.{shortened(name)}"
        if name in RESERVED:
            raise invalid(where, f"{shortened(name)} cannot be set in chat_template_kwargs")
        if name in template.variables:
            values[name] = value
        elif value not in (None, False):
            raise invalid(
                where,
                f"the model's chat template does not read {shortened(name)}, so it would have no "
                "effect: leave it out",
                "unsupported_parameter",
            )
    if body.reasoning_effort is not None:
        values = {**_effort(body.reasoning_effort, template), **values}
    if body.verbosity is not None:
        if "verbosity" in template.variables:
            values.setdefault("verbosity", body.verbosity)
        elif body.verbosity != USUAL_VERBOSITY:
            raise _unread("verbosity", "verbosity")
    if body.documents:
        if "documents" not in template.variables:
            raise _unread("documents", "documents")
        values["documents"] = body.documents
    return values


def _effort(effort: str, template: ChatTemplate) -> dict[str, Any]:
    if "reasoning_effort" in template.variables:
        return {"reasoning_effort": effort}
    switch = next((name for name in THINKING if name in template.variables), None)
    if switch:
        return {switch: effort != "none"}
    if effort == "none":
        return {}
    raise _unread("reasoning_effort", "thinking")


def _unread(field: str, what: str) -> Exception:
    return invalid(
        field,
        f"this server does not support {field} for this model: its chat template does not read "
        f"{what}; leave it out",
        "unsupported_parameter",
    )
