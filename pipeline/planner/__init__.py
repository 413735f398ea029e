"""Arithmetic of what a run will take: memory a GPU, time, disk. Imports nothing heavy."""
