"""Asks OpenAI endpoints: concurrently, within a budget, and again where an interruption stopped."""
