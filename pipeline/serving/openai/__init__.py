"""The OpenAI API on an engine."""
