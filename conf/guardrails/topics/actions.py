"""The action of the rail in rails.co."""

from nemoguardrails import RailsConfig
from nemoguardrails.actions import action
from nemoguardrails.actions.rail_outcome import RailOutcome

from pipeline.serving.guardrails.topics import Topics


@action(is_system_action=True)
async def check_topic(text: str, topics: Topics, config: RailsConfig) -> RailOutcome:
    if topics.score(text) < config.custom_data["threshold"]:
        return RailOutcome.block(reason="another topic")
    return RailOutcome.allow()
