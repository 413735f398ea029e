"""Learns the topics when the server starts."""

from nemoguardrails import LLMRails

from pipeline.serving.guardrails.texts import read_texts
from pipeline.serving.guardrails.topics import Topics


def init(rails: LLMRails) -> None:
    given = rails.config.custom_data
    allowed = read_texts(rails.config, given["allowed"])
    other = read_texts(rails.config, given["other"])
    rails.register_action_param("topics", Topics(allowed, other))
