"""The rails of one configuration, each ready to be run on a text.

Colang's runtime takes 30 ms for a rail on two cores, whatever its action does. Nearly all rails
have one form: run an action, and if its outcome is to block, say a message and stop. Such a flow is
recognized when the server starts, and its action is then called directly, as the library itself
does for streamed answers. Any other flow goes through the runtime.
"""

import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from pipeline.serving.guardrails.outcome import Call, Decision, Kind, Outcome

# The variable of the flow that has the text to check.
TEXT: Mapping[Kind, str] = {
    "input": "user_message",
    "output": "bot_message",
    "retrieval": "relevant_chunks",
    "tool_input": "tool_message",
    "tool_output": "tool_calls",
}
STOP = "stop"
# A rail that should have run and did not: what Colang's runtime saw fail in this request.
_failed_actions: ContextVar[list[str] | None] = ContextVar("failed_actions", default=None)
Variables = Mapping[str, Any]


class RailFailed(Exception):
    """A rail could not decide; the message quotes nothing of the text."""


class Rail(Protocol):
    """One flow of a configuration's `rails.<kind>.flows`."""

    name: str
    kind: Kind

    @property
    def is_quick(self) -> bool:
        """Whether it can run on every turn of a conversation: it asks no model."""

    @property
    def needs_chunks(self) -> bool:
        """Whether it compares with retrieved text, and has nothing to do without."""

    async def run(self, variables: Variables) -> Outcome:
        """Decide about the text in `variables[TEXT[kind]]`.

        Raises:
            RailFailed: it could not decide.
        """


class Form(NamedTuple):
    """A flow that runs one action. parameters: as written, such as `text: $user_message`."""

    action: str
    parameters: Mapping[str, Any]
    message: str


def form_of(
    elements: Sequence[Mapping[str, Any]], messages: Mapping[str, list[str]]
) -> Form | None:
    """The form of a flow (Colang 1.0), if it has the one that can be called directly.

    Args:
        elements: of the flow, as the library parses it.
        messages: the configuration's bot messages.
    """
    if elements and elements[0]["_type"] == "meta":  # of a subflow
        elements = elements[1:]
    first: Mapping[str, Any] = elements[0] if elements else {"_type": "none"}
    result = first.get("action_result_key")
    if first["_type"] != "run_action" or first["action_name"] in OWN_ACTIONS or not result:
        return None
    said: list[str] = []
    stops = False
    for element in elements[1:]:
        kind, expression = element["_type"], element.get("expression", "")
        name = element.get("action_name")
        if kind == "if" and expression in (
            f"${result}.is_blocked",
            f"${result}.is_transform",
            "$config.enable_rails_exceptions",
        ):
            continue
        if kind == "set" and expression.startswith(f"${result}.transform_text["):
            continue
        if kind == "run_action" and name == "utter":
            value = element["action_params"]["value"]
            stops |= value == STOP
            said += [value] if value != STOP else []
            continue
        if kind == "flow" and element.get("flow_name") == "mask blocked user input":
            continue  # in the history of the library, which we keep none of
        # The exception in place of the message; our answer is a message in either case.
        if kind == "jump" or (kind == "run_action" and name == "create_event"):
            continue
        return None
    texts = [messages[one][0] for one in said if messages.get(one)]
    if len(texts) != len(said) or len(set(said)) > 1 or any(c in t for t in texts for c in "{$"):
        return None
    if said and not stops:
        return None
    return Form(first["action_name"], first["action_params"] or {}, texts[0] if texts else "")


# Actions of the language, which are not a rail's.
OWN_ACTIONS = frozenset({"utter", "create_event", "generate_bot_message", "wait"})


@dataclass
class DirectRail:
    """A rail of that form.

    Args:
        action: the function.
        values: parameters that are the same for every text.
        variables: parameters that are a variable of the flow, by the parameter's name.
        special: names of parameters that the runtime fills in: context, events.
    """

    configuration: str
    name: str
    kind: Kind
    form: Form
    action: Callable[..., Any]
    values: Mapping[str, Any]
    variables: Mapping[str, str]
    special: frozenset[str]

    @property
    def is_quick(self) -> bool:
        return "llm" not in self.values

    @property
    def needs_chunks(self) -> bool:
        return "relevant_chunks" in self.variables.values()

    async def run(self, variables: Variables) -> Outcome:
        from nemoguardrails.actions.rail_outcome import require_rail_outcome
        from nemoguardrails.logging.processing_log import processing_log_var

        begin = time.perf_counter()
        given = {name: variables.get(key) for name, key in self.variables.items()}
        if "context" in self.special:
            given["context"] = {**variables, f"triggered_{self.kind}_rail": self.name}
        if "events" in self.special:
            given["events"] = _events(variables)
        log: list[dict[str, Any]] = []
        token = processing_log_var.set(log)
        try:
            found = self.action(**self.values, **given)
            outcome = require_rail_outcome(await found if inspect.isawaitable(found) else found)
        except Exception as error:
            raise RailFailed(f"{self.form.action}: {type(error).__name__}") from error
        finally:
            processing_log_var.reset(token)
        decision: Decision = "passed"
        if outcome.is_blocked:
            decision = "failed" if outcome.failed else "blocked"
        elif outcome.is_transform:
            decision = "changed"
        return Outcome(
            *(self.configuration, self.name, self.kind, decision, time.perf_counter() - begin),
            values=dict(outcome.transform_text),
            message=self.form.message if outcome.is_blocked else "",
            detail=_safe(outcome.reason, variables) if decision != "passed" else None,
            actions=(self.form.action,),
            calls=calls_in(log),
        )


def _safe(reason: str | None, variables: Variables) -> str | None:
    """A reason that an action gives, unless it quotes a text that was checked."""
    texts = [text for text in variables.values() if isinstance(text, str) and len(text) > 3]
    return None if reason and any(text in reason for text in texts) else reason


def _events(variables: Variables) -> list[dict[str, Any]]:
    """The turns before the one that is checked, as actions expect a conversation."""
    shapes = {
        "user": ("UserMessage", "text"),
        "assistant": ("StartUtteranceBotAction", "script"),
        "system": ("SystemMessage", "content"),
    }
    events = []
    for turn in variables.get("history", ()):
        if turn["role"] in shapes:
            kind, field = shapes[turn["role"]]
            events.append({"type": kind, field: turn["content"]})
    return events


def calls_in(log: Sequence[Mapping[str, Any]]) -> tuple[Call, ...]:
    """The calls of models in the library's processing log."""
    found = [entry["data"] for entry in log if entry.get("type") == "llm_call_info"]
    return tuple(
        Call(c.task, c.duration or 0.0, c.prompt_tokens or 0, c.completion_tokens or 0)
        for c in found
    )


@dataclass
class FlowRail:
    """A rail of any other form, run by Colang's runtime (1.0).

    Args:
        rails: the library's LLMRails of the configuration, with no other rail of this kind: the
            runtime runs all that there are, whichever the options name.
    """

    configuration: str
    name: str
    kind: Kind
    rails: Any

    @property
    def is_quick(self) -> bool:
        return False

    @property
    def needs_chunks(self) -> bool:
        return False

    async def run(self, variables: Variables) -> Outcome:
        begin = time.perf_counter()
        text = TEXT[self.kind]
        context = {k: v for k, v in variables.items() if k not in ("history", "user_message")}
        messages = [
            {"role": "context", "content": context},
            {"role": "user", "content": variables.get("user_message") or ""},
        ]
        if self.kind == "output":
            messages.append({"role": "assistant", "content": variables["bot_message"]})
        found = await generate(self.rails, messages, {self.kind: True}, output_vars=[text])
        rail = next((r for r in found.log.activated_rails if r.name == self.name), None)
        decision: Decision = "passed"
        values = {}
        if rail is not None and rail.stop:
            decision = "blocked"
        elif (found.output_data or {}).get(text) not in (None, variables.get(text)):
            decision, values = "changed", {text: str(found.output_data[text])}
        return Outcome(
            *(self.configuration, self.name, self.kind, decision, time.perf_counter() - begin),
            values=values,
            message=said(found) if decision == "blocked" else "",
            actions=actions_of(found),
            calls=calls_of(found),
        )


async def generate(
    rails: Any, messages: list[dict[str, Any]], kinds: Mapping[str, Any], **options: Any
) -> Any:
    """The library's GenerationResponse, with only these kinds of rails.

    Raises:
        RailFailed: an action failed, which the library itself answers with an apology.
    """
    chosen = dict.fromkeys(("input", "output", "retrieval", "dialog", "tool_input"), False)
    chosen |= {"tool_output": False, **kinds}
    failed: list[str] = []
    token = _failed_actions.set(failed)
    try:
        found = await rails.generate_async(
            messages=messages,
            # With a state, even an empty one, the library keeps no copy of the conversation.
            state={},
            options={"rails": chosen, "log": {"activated_rails": True}, **options},
        )
    except Exception as error:
        raise RailFailed(type(error).__name__) from error
    finally:
        _failed_actions.reset(token)
    if failed:
        raise RailFailed(f"{failed[0]} failed")
    return found


def watch_actions(dispatcher: Any) -> None:
    """Have `generate` learn of actions that fail in the runtime."""
    execute = dispatcher.execute_action

    async def watched(name: str, parameters: dict[str, Any]) -> Any:
        result, status = await execute(name, parameters)
        failed = _failed_actions.get()
        if status == "failed" and failed is not None:
            failed.append(name)
        return result, status

    dispatcher.execute_action = watched


def said(found: Any) -> str:
    """The text of a GenerationResponse; empty for an exception event."""
    content = found.response[-1].get("content") if found.response else ""
    return content if isinstance(content, str) else ""


def actions_of(found: Any) -> tuple[str, ...]:
    own = ("generate_bot_message", "retrieve_relevant_chunks")
    names = [a.action_name for r in found.log.activated_rails for a in r.executed_actions]
    return tuple(name for name in dict.fromkeys(names) if name not in own)


def calls_of(found: Any) -> tuple[Call, ...]:
    calls = [c for r in found.log.activated_rails for a in r.executed_actions for c in a.llm_calls]
    return calls_in([{"type": "llm_call_info", "data": call} for call in calls])
