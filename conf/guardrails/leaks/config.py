"""Reads the files of custom_data when the server starts."""

from nemoguardrails import LLMRails

from pipeline.serving.guardrails.checks import Shingles
from pipeline.serving.guardrails.texts import read_texts


def init(rails: LLMRails) -> None:
    given = rails.config.custom_data
    texts = read_texts(rails.config, given.get("protected", []))
    rails.register_action_param("protected_texts", Shingles(texts, given.get("words", 8)))
