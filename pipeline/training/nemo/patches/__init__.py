"""Replacements of library code. What, why and for which version: records.py."""
