"""Reads the file of custom_data when the server starts."""

from nemoguardrails import LLMRails

from pipeline.serving.guardrails.checks import Phrases
from pipeline.serving.guardrails.texts import folder_of


def init(rails: LLMRails) -> None:
    file = folder_of(rails.config) / rails.config.custom_data["phrases"]
    rails.register_action_param("phrases", Phrases(file))
