"""Parsers of answers: thoughts, text and tool calls, as each family of models writes them."""
