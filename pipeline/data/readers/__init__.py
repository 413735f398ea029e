"""Readers of data files: one module for each kind of file, and table.py, which lists them."""
