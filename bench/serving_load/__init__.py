"""Stress tests of the server; `python -m bench.serving_load --help`."""
