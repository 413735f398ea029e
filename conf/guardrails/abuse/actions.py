"""The action of the rails in rails.co."""

from nemoguardrails.actions import action
from nemoguardrails.actions.rail_outcome import RailOutcome

from pipeline.serving.guardrails.checks import Phrases


@action(is_system_action=True)
async def check_abuse(text: str, phrases: Phrases) -> RailOutcome:
    if phrases.found_in_disguise(text):
        return RailOutcome.block(reason="abuse or harm")
    return RailOutcome.allow()
