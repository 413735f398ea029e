"""Runs every model family through every hop on a tiny random model, and writes docs/models.md.

python -m tools.family_table                    every family, each in a process of its own
python -m tools.family_table mixtral gpt_oss    some of them; the others stay as recorded
python -m tools.family_table --page             only write the page from what is recorded
"""
