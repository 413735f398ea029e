"""The action of the rail in rails.co."""

from nemoguardrails import RailsConfig
from nemoguardrails.actions import action
from nemoguardrails.actions.rail_outcome import RailOutcome

from pipeline.serving.guardrails.checks import supported_share


@action(is_system_action=True)
async def check_grounding(text: str, chunks: str | None, config: RailsConfig) -> RailOutcome:
    if chunks is None:
        return RailOutcome.allow()
    if supported_share(text, chunks) < config.custom_data.get("supported", 0.7):
        return RailOutcome.block(reason="not in the retrieved text")
    return RailOutcome.allow()
