"""Replacements of the vendors' code, each with its reason."""
