"""What the server does with requests, beside vLLM and NVIDIA NIM: a list of cases.

A test sends every case (tests/unit/serving/test_behaviours.py), and docs/api.md shows them as a
table, written by

    python -m tests.unit.serving.behaviours.table
"""
