"""The actions of the rails in rails.co."""

from nemoguardrails.actions import action
from nemoguardrails.actions.rail_outcome import RailOutcome, TransformTarget

from pipeline.serving.guardrails.checks import Phrases


@action(is_system_action=True)
async def check_jailbreak(text: str, phrases: Phrases) -> RailOutcome:
    if phrases.found_in_disguise(text):
        return RailOutcome.block(reason="an attempt to change the task")
    return RailOutcome.allow()


@action(is_system_action=True)
async def check_document(text: str, phrases: Phrases) -> RailOutcome:
    """Leaves out the lines of a document that give the model instructions."""
    lines = text.split("\n")
    kept = [line for line in lines if not phrases.found_in_disguise(line)]
    if len(kept) == len(lines):
        return RailOutcome.allow()
    return RailOutcome.transform(
        [(TransformTarget.RELEVANT_CHUNKS, "\n".join(kept))], reason="instructions in a document"
    )
