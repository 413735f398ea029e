"""The actions of the rails in rails.co."""

from nemoguardrails.actions import action
from nemoguardrails.actions.rail_outcome import RailOutcome

from pipeline.serving.guardrails.checks import Shingles, private_data


@action(is_system_action=True)
async def check_private_data(text: str) -> RailOutcome:
    kind = private_data(text)
    return RailOutcome.block(reason=kind) if kind else RailOutcome.allow()


@action(is_system_action=True)
async def check_system_prompt(text: str, context: dict | None = None) -> RailOutcome:
    turns = (context or {}).get("history") or ()
    prompts = [turn["content"] for turn in turns if turn["role"] == "system"]
    if prompts and Shingles(prompts).found(text):
        return RailOutcome.block(reason="the system prompt")
    return RailOutcome.allow()


@action(is_system_action=True)
async def check_protected_texts(text: str, protected_texts: Shingles) -> RailOutcome:
    if protected_texts.found(text):
        return RailOutcome.block(reason="a protected text")
    return RailOutcome.allow()
